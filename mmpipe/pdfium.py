"""PDFium's one lock. Imports nothing heavy: computed columns and ingest both hold it."""

from __future__ import annotations

import threading

# PDFium is not thread-safe (pypdfium2's README, "Thread safety"): one document at a time in this process.
pdfium_lock = threading.Lock()
