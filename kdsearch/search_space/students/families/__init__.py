"""One file per student family."""
