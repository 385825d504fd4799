"""Splits of whole groups with their share of every label, each assigned once and kept."""

from mmpipe.splits.stratify import StratifyReport, stratify

__all__ = ['StratifyReport', 'stratify']
