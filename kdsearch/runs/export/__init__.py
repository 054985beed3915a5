"""What leaves a run: the best recipe with its provenance, and the student alone."""
