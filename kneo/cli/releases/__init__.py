"""Commands that release, promote and approve."""
