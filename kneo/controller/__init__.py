"""The GitOps controller: ``reconcile`` brings the registry to the state that a commit declares.

source → stages: load → verify → plan → gates → apply → report
"""
