"""HTTP: parse, authorise, call, render. Nothing is decided here."""
