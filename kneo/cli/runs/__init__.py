"""Commands that start and inspect runs."""
