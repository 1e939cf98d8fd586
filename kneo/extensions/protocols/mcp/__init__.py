"""Served agents as tools of an MCP server; imported at the first request, because it needs the extra ``mcp``."""
