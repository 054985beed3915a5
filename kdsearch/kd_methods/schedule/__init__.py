"""When, and how strongly."""
