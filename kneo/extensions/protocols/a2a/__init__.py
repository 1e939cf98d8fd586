"""Served agents over Agent2Agent; imported at the first request, because it needs the extra ``a2a``."""
