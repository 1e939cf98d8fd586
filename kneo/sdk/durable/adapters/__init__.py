"""Agents of other libraries as parts of flows. Each module needs its library."""
