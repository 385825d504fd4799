"""Rows of one origin in several splits of a snapshot. Reads shards alone: neither Pixeltable nor torch."""

from mmpipe.leaks.check import Leak, LeakReport, check_leaks

__all__ = ['Leak', 'LeakReport', 'check_leaks']
