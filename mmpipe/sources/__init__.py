"""Incremental ingest: rows and files from folders and manifests, checked before they are inserted."""

from mmpipe.sources.every import every
from mmpipe.sources.ingest import IngestReport, ingest
from mmpipe.sources.manifest import rows
from mmpipe.sources.quarantine import quarantined
from mmpipe.sources.readers import files
from mmpipe.sources.record import Bad, Record, Source

__all__ = ['Bad', 'IngestReport', 'Record', 'Source', 'every', 'files', 'ingest', 'quarantined', 'rows']
