"""Tools that are Python functions: their registry in a program that embeds Kneo, their context and their result."""

from kneo.agents.function_tools import *  # noqa: F403 - its public names
