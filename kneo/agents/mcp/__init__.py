"""MCP servers: their connections, processes, tools and pins."""
