"""``kneo doctor``: checks of an installation, each with a result and what to do."""
