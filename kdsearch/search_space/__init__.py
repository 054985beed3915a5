"""The space of recipes: the tree of decisions, the recipe at its leaves, and the students a recipe can train."""

from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

__all__ = ["Recipe", "SearchSpace"]
