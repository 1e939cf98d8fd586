"""From Git to the registry. One pass is one call of ``reconcile``; the listing of this package is the pipeline.

source → load → verify → plan → gates → apply → report
"""
