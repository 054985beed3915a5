"""What travels between the driver and whoever runs trials: plain data, cheap to pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdsearch.runs.fidelity import FULL, Fidelity

SEARCH, FINAL = "search", "final"


@dataclass(frozen=True)
class Job:
    """A recipe to evaluate: in the search up the ladder, or as a finalist at full fidelity under one seed.

    Attributes:
        number: the trial's number in its study.
        seed: the run's seed for search jobs; for finalists the index k of the finalist seed.
        protected: a baseline or a published default: never rejected by its gradients.
        scored: whether proxies have anything to tell apart; they do not in a space of one student.
    """

    kind: str
    number: int
    recipe: dict[str, Any]
    seed: int
    protected: bool = False
    scored: bool = True


@dataclass
class RungResult:
    """What one rung of one job found.

    Attributes:
        name: "proxies" or the fidelity's name.
        trained: whether `score` is a validation metric of a trained student.
        score: the run's metric; for proxies the one that prunes.
        seconds: this rung's own cost; `charged` and `assistants` are the other models' (paid now, and in all).
        notes: how it was done, where that departs from the plain case.
        tables: rows of numbers by name, for the report.
    """

    name: str
    score: float
    seconds: float
    trained: bool = True
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    assistants: float = 0.0
    charged: float = 0.0
    size: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, list[list[float]]] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a job ended without its result. `deterministic` ones would fail again; others are infrastructure."""

    reason: str
    message: str
    deterministic: bool
    trace: str = ""


@dataclass(frozen=True)
class Ladder:
    """The rungs of a search trial and what stands before them.

    Attributes:
        limits: what a student may cost, by quantity, latency apart: it is measured in one place, by the driver.
        batch: images of the inference that a student's memory is told of.
    """

    rungs: tuple[Fidelity, ...] = (FULL,)
    proxies: tuple[str, ...] = ()
    prune_by: str | None = None
    rejection: tuple[float, float] = (1e-4, 1e4)
    limits: Mapping[str, float] = field(default_factory=dict)
    batch: int = 1
