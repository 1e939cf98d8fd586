"""Runs. Durable because every step is recorded, not because anything is replayed.

``program`` compiles a frozen spec, ``decide`` says what can happen next (pure), ``advance`` makes it happen and
records it, ``worker`` finds runs to advance, ``timers`` brings time.
"""
