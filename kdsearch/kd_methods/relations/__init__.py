"""Losses on how samples relate."""
