"""Losses on stage features."""
