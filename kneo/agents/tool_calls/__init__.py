"""One tool call: it is checked, asked about, made and recorded, whatever is behind the tool."""
