"""Runs. Durable because every step is recorded, not because anything is replayed.

``program`` compiles a frozen spec, ``decide`` says what can happen next (pure), ``session`` makes it happen and has
``record`` write it down, ``advance`` makes sessions, ``worker`` finds runs to drive, ``timers`` brings time.
"""
