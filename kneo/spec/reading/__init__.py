"""From files to specs: bounded readers, overlays, migration, defaults, normal form and the schema."""
