"""The finals as rows of plain data, and as a table for the terminal."""

from __future__ import annotations

from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from kdsearch.runs.ledger import RUNG
from kdsearch.runs.report.intervals import Estimate, estimate, paired
from kdsearch.search_space.recipe import Recipe, student_text

if TYPE_CHECKING:
    from kdsearch.runs.run import Run

LABELS = {
    "baseline:none": "no distillation",
    "baseline:kd": "plain KD",
    "paired:none": "no distillation (best student)",
    "paired:kd": "plain KD (best student)",
}


def finals_rows(run: Run) -> list[dict[str, Any]]:
    """One row per recipe of the finals: the baselines, then the finalists, best first. Plain data that JSON takes.

    `best` marks the winner, which is plain KD where no finalist beats it; `candidate` marks what was given up after its
    first seeds. Each split's entry (`validation`; `test` is None where it was not looked at) holds mean, spread,
    half_width of the 95 % interval and the scores by seed, and in `over_none` and `over_kd` the paired difference, in
    the metric's own sign, to the same student and optimiser without distillation and under plain KD; None where the
    finals have no such row, or where it is the row itself.
    """
    found = by_recipe(run)
    scores = {key: _scores(run, trials) for key, trials in found.items()}
    roles = {key: trials[0].user_attrs["role"] for key, trials in found.items()}
    sign = 1 if run.finals_ledger.primary == "maximize" else -1
    ranked = [key for key in found if roles[key] == "finalist"]
    most = max((len(scores[key]["validation"]) for key in ranked), default=0)
    candidates = {key for key in ranked if len(scores[key]["validation"]) < most}
    # Over fewer seeds, a candidate's mean may not be compared with the others'.
    ranked.sort(key=lambda key: (key in candidates, -sign * fmean(scores[key]["validation"].values())))
    winner, latencies = run.finals.winner(), _latencies(run)
    labels = _labels(ranked, candidates, roles, winner.recipe if winner is not None else None)
    best = winner.recipe.hash if winner is not None else None
    return [
        {
            **_row(key, found[key], scores, latencies),
            "label": labels[key],
            "best": key == best,
            "candidate": key in candidates,
        }
        for key in labels
    ]


def _labels(ranked: list[str], candidates: set[str], roles: dict[str, str], winner: Recipe | None) -> dict[str, str]:
    """What each recipe is called, in the order of the rows."""
    own = {winner.without_distillation().hash, winner.plain_kd().hash} if winner is not None else set()
    rest = sorted((key for key in roles if key not in ranked), key=lambda key: list(LABELS).index(roles[key]))
    # The finals of a run that was resumed may hold the student of an earlier winner.
    labels = {key: LABELS[roles[key]] for key in rest}
    for key in rest:
        if key not in own:
            labels[key] = labels[key].replace("best student", "earlier student")
    for place, key in enumerate(ranked, 1):
        labels[key] = f"candidate {place}" if key in candidates else f"finalist {place}"
    if winner is not None and winner.hash in ranked:
        labels[winner.hash] = "best found"
    return labels


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The winner's row; None before any distilled recipe of the finals has finished."""
    return next((row for row in rows if row["best"]), None)


def by_recipe(run: Run) -> dict[str, list[FrozenTrial]]:
    """Finished trials of the finals by the recipe's hash, seed after seed."""
    found: dict[str, list[FrozenTrial]] = {}
    for trial in sorted(run.finals_ledger.trials(TrialState.COMPLETE), key=lambda t: t.user_attrs["seed"]):
        found.setdefault(trial.user_attrs["hash"], []).append(trial)
    return found


def _scores(run: Run, trials: list[FrozenTrial]) -> dict[str, dict[int, float]]:
    """Score by seed on either split. Test scores are there for the winner and the baselines alone."""
    tested = run.finals_ledger.study.user_attrs.get("test", {})
    seen = {t.user_attrs["seed"]: tested[str(t.number)] for t in trials if str(t.number) in tested}
    return {
        "validation": {t.user_attrs["seed"]: t.values[0] for t in trials},
        "test": {seed: metrics[run.config.metric] for seed, metrics in seen.items()},
    }


def _latencies(run: Run) -> dict[str, float]:
    """Measured during the search, by recipe; empty where nobody asked for them."""
    rungs = [rung.name for rung in run.config.fidelity.rungs]
    return {
        trial.user_attrs["hash"]: size["latency"]
        for trial in run.search_ledger.trials()
        for name in rungs
        if "latency" in (size := trial.user_attrs.get(RUNG + name, {}).get("size", {}))
    }


def _row(
    key: str,
    trials: list[FrozenTrial],
    scores: dict[str, dict[str, dict[int, float]]],
    latencies: dict[str, float],
) -> dict[str, Any]:
    attributes = trials[0].user_attrs
    recipe = Recipe.from_dict(attributes["recipe"])
    finals = [t.user_attrs[RUNG + "final"] for t in trials]
    row: dict[str, Any] = {
        "role": attributes["role"],
        "equation": recipe.equation(),
        "student": student_text(recipe),
        "hash": key,
        "trial": attributes.get("source"),
        "seeds": [t.user_attrs["seed"] for t in trials],
    }
    rivals = {"over_none": recipe.without_distillation().hash, "over_kd": recipe.plain_kd().hash}
    for split, ours in scores[key].items():
        row[split] = _split(ours) if ours else None
        for name, rival in rivals.items():
            if ours:
                theirs = scores[rival][split] if rival != key and rival in scores else {}
                row[split][name] = _plain(paired(ours, theirs))
    for name in ("parameters", "macs", "memory"):
        row[name] = finals[0].get("size", {}).get(name)
    row["latency"] = latencies.get(key)
    row["seconds"] = fmean(f["seconds"] for f in finals)
    row["assistant_seconds"] = fmean(f.get("assistants") or 0.0 for f in finals)
    return row


def _split(scores: dict[int, float]) -> dict[str, Any]:
    return {**asdict(estimate(list(scores.values()))), "scores": list(scores.values())}


def _plain(found: Estimate | None) -> dict[str, Any] | None:
    return asdict(found) | {"resolved": found.resolved} if found else None


def mean_text(split: dict[str, Any] | None, *, signed: bool = False) -> str:
    """`0.9123 ± 0.0045`, the half-width of the 95 % interval behind the sign; no interval for a single seed."""
    if split is None:
        return "–"
    mean = f"{split['mean']:+.4f}" if signed else f"{split['mean']:.4f}"
    return mean if split["half_width"] is None else f"{mean} ± {split['half_width']:.4f}"


def finals_table(run: Run) -> str:
    """The finals in plain text, with the best recipe's gains below; one line says so where there are none yet."""
    from kdsearch.runs.report.headline import gains

    rows = finals_rows(run)
    if not rows:
        return "no finals yet: the best trial of the search has not been confirmed over seeds"
    metric = run.config.metric
    head = ("", f"validation {metric}", f"test {metric}", "seeds")
    mark = {True: " *", False: ""}
    body = [
        (r["label"] + mark[r["best"]], mean_text(r["validation"]), mean_text(r["test"]), str(len(r["seeds"])))
        for r in rows
    ]
    widths = [max(len(line[k]) for line in (head, *body)) for k in range(len(head))]
    lines = []
    for line in (head, *body):
        cells = (f"{line[0]:<{widths[0]}}", *(f"{line[k]:>{widths[k]}}" for k in (1, 2, 3)))
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *gains(run, rows)])
