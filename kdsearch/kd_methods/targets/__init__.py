"""Where labels and soft labels come from."""
