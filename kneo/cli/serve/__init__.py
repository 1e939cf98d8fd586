"""Commands that run processes and maintain the database."""
