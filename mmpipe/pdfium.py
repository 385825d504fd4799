"""PDFium's one lock. Imports nothing heavy: computed columns and ingest both hold it."""

from __future__ import annotations

import threading

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1

# PDFium is not thread-safe (pypdfium2's README, "Thread safety"): one document at a time in this process.
pdfium_lock = threading.Lock()
