"""The only SQL: SQLAlchemy Core, one code path for SQLite and PostgreSQL.

A module per table group, each a set of functions over an open transaction. A change and its audit event share it.
"""
