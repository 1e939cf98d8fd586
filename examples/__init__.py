"""Specs to start from, and the functions they name. Nothing of the library or the service imports this."""
