"""Signatures, trust roots and their verification.

Every function is pure over bytes, keys and a time argument: no files, clock, environment, database or network. Verification
returns a verified object or raises an error whose ``code`` is the reason. Only ``verify`` makes a ``VerifiedBundle``.
"""
