"""Protocols by which other programs call served agents: Agent2Agent and MCP."""
