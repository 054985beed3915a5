"""Who teaches, and in which order."""
