"""The import of the history of kneo-serv, the published platform: its commands."""

from kneo.cli.commands import Entry

_COMMANDS = "kneo.extensions.kneo_serv.commands"

IMPORT = Entry(f"{_COMMANDS}:import_database", "Import the history of kneo-serv from its database")
IMPORTED_EVENTS = Entry(f"{_COMMANDS}:show_imported_events", "List audit events that were imported from kneo-serv")
