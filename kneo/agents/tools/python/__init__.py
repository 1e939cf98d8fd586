"""Tools that are Python functions, of a spec's modules and of the process's registry."""
