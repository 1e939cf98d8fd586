"""Routes that are not operations, one module per noun. A route parses, calls and renders."""
