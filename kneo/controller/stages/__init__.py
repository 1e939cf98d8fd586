"""The stages of a reconciliation, in order: load → verify → plan → gates → apply → report."""
