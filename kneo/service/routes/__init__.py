"""One file per noun. A route parses, calls and renders; it decides nothing."""
