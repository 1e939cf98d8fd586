"""The runtime: it executes runs. Durable because every step is recorded; nothing is replayed.

``program`` compiles a frozen spec. ``interpreter`` decides which actions a state allows and applies their outcomes (pure).
``engine`` starts, drives, records and recovers runs: a ``worker`` finds due runs, a ``driver`` makes ``session``s, ``record``
writes their transactions, ``timers`` process deadlines. ``steps`` executes activities. ``dispatch`` hands due runs to workers:
Procrastinate on PostgreSQL, or Temporal; without it the engine's worker polls its own database. ``simulate`` explores every
branch of a spec with the interpreter alone.
"""
