"""What each rung of the ladder cost, how many trials entered it, and how many it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from kdsearch.runs.ledger import PROPOSED, RUNG
from kdsearch.runs.report.outcomes import FINAL, PROXIES

if TYPE_CHECKING:
    from kdsearch.runs.run import Run

VALIDITY, REJECTION = "validity", "loss rejection"


@dataclass
class Rung:
    """One rung over the whole search.

    Attributes:
        seconds: in all, assistants that were trained for it included; None where a rung's cost is not measured.
        share: of what all rungs of the search cost; None for the finals, which come after it.
        entered, stopped, failed: trials. What failed on a rung left no result there.
        saved: what training the stopped ones to the top would have cost, at the mean cost of the rungs above.
    """

    name: str
    seconds: float | None
    entered: int = 0
    stopped: int = 0
    failed: int = 0
    share: float | None = None
    saved: float | None = None
    costs: list[float] = field(default_factory=list)


def rungs(run: Run) -> list[Rung]:
    """The ladder from validity to the finals. Duplicates and what an earlier run has trained cost nothing and are left
    out; baselines are in.
    """
    free = {"duplicate_of", "taken_from"}
    trials = [t for t in run.search_ledger.trials() if not free & set(t.user_attrs) and "hash" in t.user_attrs]
    names = [rung.name for rung in run.config.fidelity.rungs]
    if any(RUNG + PROXIES in t.user_attrs for t in trials):
        names.insert(0, PROXIES)
    invalid = _reason("invalid")
    table = [Rung(VALIDITY, None, entered=len(trials), stopped=sum(map(invalid, trials)))]
    valid = [t for t in trials if not invalid(t)]
    taught = [t for t in valid if t.user_attrs.get("origin", "search") in PROPOSED]
    spent = [t.user_attrs[RUNG + "rejection"]["seconds"] for t in taught if RUNG + "rejection" in t.user_attrs]
    rejected = sum(map(_reason("rejected"), taught))
    table.append(Rung(REJECTION, sum(spent) if spent else None, entered=len(taught), stopped=rejected))
    before = [t for t in valid if not _reason("rejected")(t)]
    for name in names:
        rung, before = _rung(name, before)
        table.append(rung)
    total = sum(r.seconds or 0.0 for r in table)
    for place, rung in enumerate(table):
        rung.share = rung.seconds / total if rung.seconds is not None and total else None
        above = [fmean(r.costs) for r in table[place + 1 :] if r.costs]
        rung.saved = rung.stopped * sum(above) if rung.stopped else None
    table.append(_finals(run))
    return table


def _rung(name: str, before: list[FrozenTrial]) -> tuple[Rung, list[FrozenTrial]]:
    """A rung, and the trials that went on from it."""
    here = [t for t in before if RUNG + name in t.user_attrs]
    stopped = [t for t in here if t.user_attrs.get("pruned_at") == name]
    # What ended before this rung gave a result, and was not stopped below, ended on it.
    failed = [t for t in before if RUNG + name not in t.user_attrs and "failure" in t.user_attrs]
    costs = [_seconds(t.user_attrs[RUNG + name]) for t in here]
    rung = Rung(name, sum(costs), len(here) + len(failed), len(stopped), len(failed), costs=costs)
    return rung, [t for t in here if t not in stopped]


def _finals(run: Run) -> Rung:
    trials = run.finals_ledger.trials()
    costs = [_seconds(t.user_attrs[RUNG + FINAL]) for t in trials if RUNG + FINAL in t.user_attrs]
    failed = sum("failure" in t.user_attrs for t in trials)
    return Rung("finals", sum(costs), entered=len(trials), failed=failed, costs=costs)


def _seconds(found: dict[str, Any]) -> float:
    return float(found.get("seconds") or 0.0) + float(found.get("charged") or 0.0)


def _reason(name: str) -> Callable[[FrozenTrial], bool]:
    return lambda trial: trial.user_attrs.get("failure", {}).get("reason") == name
