"""The ``kneo`` command: it parses, calls and renders; decisions are made in the library.

``commands`` is the table of commands, ``main`` imports the one module that a call needs and turns errors into exit
statuses, and ``render`` is the only module that writes to a terminal.
"""
