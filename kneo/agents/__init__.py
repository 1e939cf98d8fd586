"""The model layer: who answers when a step says ``kind: agent``."""
