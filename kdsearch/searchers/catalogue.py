"""The table of searchers: names, options, and what each makes of a conditional space. Needs no Optuna to be read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kdsearch.parameters import Declared
from kdsearch.registry import Registry, discover, nearest

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

ENTRY_POINTS = "kdsearch.searchers"


class MissingPackage(ImportError, ValueError):
    """A searcher was asked for whose package is an extra that is not installed."""


class Searcher(Declared):
    """One entry of the table: a declared set of options that builds an Optuna sampler.

    Class attributes:
        name, title: the key it registers under and what it is, in one line.
        source: whose algorithm, and where it is written up.
        models: what it really models of a conditional space; the rest of its proposals are random draws.
        objects: options that are no plain values, each with a line on what it is; they are handed to `build` as given.
        objectives: how many objectives a study under it may have; None for any number.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    models: ClassVar[str]
    objects: ClassVar[dict[str, str]] = {}
    objectives: ClassVar[int | None] = None

    def build(self, seed: int | None, **objects: Any) -> BaseSampler:
        """The sampler. Its proposals follow from the study and the seed; None draws a seed."""
        raise TypeError(f"{self.name} builds no sampler")


SEARCHERS: Registry[Searcher] = Registry("searcher", partial(discover, ENTRY_POINTS, "kdsearch.searchers"))
register = SEARCHERS.register


def names() -> list[str]:
    """All registered names."""
    return SEARCHERS.names()


def asked(name: str, knowledge: Mapping[str, Any]) -> dict[str, Any]:
    """The part of what is known of a space that a searcher asks for."""
    return {key: value for key, value in knowledge.items() if key in SEARCHERS[name].objects}


def create(name: str, /, *, seed: int | None, **options: Any) -> BaseSampler:
    """A sampler by name.

    Args:
        seed: of its random draws; None draws one.
        options: as the table lists them.

    Raises:
        ValueError: unknown name or option, or a value outside its domain; the message gives the nearest valid ones.
        MissingPackage: the searcher needs an extra that is not installed. Also a ValueError.
    """
    cls = SEARCHERS[name]
    known = [*cls.parameters, *cls.objects]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise ValueError(f"searcher {name!r} has no option {option!r}; {hint}")
    objects = {key: options.pop(key) for key in cls.objects if key in options}
    return cls(**options).build(seed, **objects)
