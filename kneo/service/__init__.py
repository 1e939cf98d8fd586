"""The HTTP server: it parses, authorises, calls and renders, and contains no business rule."""
