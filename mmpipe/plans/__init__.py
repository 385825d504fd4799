"""Plan and apply: what a declared schema changes in the catalog, and the doing of it. Imports no torch."""

from mmpipe.plans.apply import apply
from mmpipe.plans.plan import Change, Plan, plan
from mmpipe.plans.ray_engine import RayColumn, RayEngine
from mmpipe.plans.retry import RetryReport, retry

__all__ = ['Change', 'Plan', 'RayColumn', 'RayEngine', 'RetryReport', 'apply', 'plan', 'retry']
