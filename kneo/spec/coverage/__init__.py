"""Gate coverage: what a run can do, which gates it passes first, and what an environment requires of both."""
