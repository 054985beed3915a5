"""Losses on the tokens of vision transformers."""
