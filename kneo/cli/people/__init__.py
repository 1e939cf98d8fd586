"""Commands that work on human tasks."""
