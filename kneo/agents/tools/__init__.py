"""The kinds of tools in the engine: one folder each, found by the name of the kind."""
