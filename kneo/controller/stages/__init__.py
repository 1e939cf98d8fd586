"""The stages of a reconciliation, in order: load → verify → plan → evidence → gates → apply → report."""
