"""The ``kneo`` command: it parses, calls, and shows. Whatever decides something lives below.

``commands`` is the tree as a table, ``lazy`` imports the one module that a call needs, ``main`` turns errors into exit
codes, and ``render`` is the only place that speaks to a terminal.
"""
