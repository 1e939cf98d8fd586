"""Who vouches for which bytes.

What lives here is pure over bytes, keys and a time that is handed in: no files, no clock, no environment, no database,
no network. Bytes go in, and either a verified thing comes out or an error whose ``code`` is the reason. Trust is a
type: only ``verify`` makes a ``VerifiedBundle``, so a function that takes one cannot be given anything else.
"""
