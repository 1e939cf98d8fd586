"""The stages of a reconciliation, in order: load → verify → plan → gates → report. ``registry_state`` applies."""
