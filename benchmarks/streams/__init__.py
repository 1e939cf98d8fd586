"""Decisions and probes with slow clients of streams and refused sign-ins."""
