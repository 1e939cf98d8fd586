"""The config repository as its operator sees it: its layout, a clone of it, its mirrors and pinned trust roots."""
