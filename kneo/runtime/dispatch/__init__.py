"""How runs that are due find a process to drive them.

``inproc`` looks for them itself and is the only one on its database. ``postgres`` shares a database with others of its
kind: Procrastinate hands out jobs, notices processes that died and hands their jobs to others. ``temporal`` leaves that to a Temporal server.
"""
