"""Searchers: what proposes the next recipe. Every searcher is an Optuna sampler.

>>> from kdsearch import searchers
>>> sampler = searchers.create("mcts", seed=0, exploration=0.5)

Names and options are listed without importing Optuna; `MCTSSampler`, `tree` and `Node` load it when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.searchers.catalogue import SEARCHERS, MissingPackage, Searcher, asked, create, names

if TYPE_CHECKING:
    from kdsearch.searchers.mcts.picture import Node, tree
    from kdsearch.searchers.mcts.sampler import MCTSSampler

__all__ = ["SEARCHERS", "MCTSSampler", "MissingPackage", "Node", "Searcher", "asked", "create", "names", "tree"]


def __getattr__(name: str) -> Any:
    if name == "MCTSSampler":
        from kdsearch.searchers.mcts.sampler import MCTSSampler

        return MCTSSampler
    if name in ("Node", "tree"):
        from kdsearch.searchers.mcts import picture

        return getattr(picture, name)
    raise AttributeError(f"module 'kdsearch.searchers' has no attribute {name!r}")
