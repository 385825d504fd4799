"""What decides the values that a function computes: its code, what that reaches, its constants and weights."""

from mmpipe.fingerprints.fingerprint import Fingerprint, fingerprint, loads

__all__ = ['Fingerprint', 'fingerprint', 'loads']
