"""What the system records: frozen records and their legal transitions. No I/O here."""
