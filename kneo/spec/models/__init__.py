"""Models of files: spec v1, environments and answers, with defaults filled in.

The models are strict about types and keys. References to missing parts and impossible values are for the rules, so that
each such mistake has its own published code.
"""
