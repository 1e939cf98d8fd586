"""Import of the history in a database of the published platform: ``source`` reads it, ``conversion`` decides, ``importer`` writes."""
