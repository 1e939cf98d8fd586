"""The config repository of an operator: its layout, a clone, mirrors and pinned trust roots."""
