"""The ledger: which rows of which computed column were made by which code. Imports no torch."""

from mmpipe.ledger.book import Book, ColumnState, keeping, recomputed, refuse_stale
from mmpipe.ledger.prints import Print, column_prints

__all__ = ['Book', 'ColumnState', 'Print', 'column_prints', 'keeping', 'recomputed', 'refuse_stale']
