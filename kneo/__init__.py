"""Kneo: agent and workflow specs are code, Git deploys them, people stay in charge."""

__version__ = "0.1.0"

WIRE_VERSION = "1.2.0"
"""The version of the published HTTP contract this package speaks."""
