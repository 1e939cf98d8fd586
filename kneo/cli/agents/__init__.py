"""Commands that talk with agents."""
