"""Commands that check specs and build signed bundles."""
