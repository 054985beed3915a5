"""What a run found, in sentences: as much as the numbers carry, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from kdsearch.runs.report.intervals import ROUNDING
from kdsearch.runs.report.tables import best_row, mean_text

if TYPE_CHECKING:
    from kdsearch.runs.run import Run

Row = dict[str, Any]
RIVALS = (("over_none", "no distillation"), ("over_kd", "plain KD"))


@dataclass(frozen=True)
class Headline:
    """The first thing a reader sees.

    Attributes:
        verdict: "gain", "noise", "loss" or "open": how the sentence is to be coloured.
        equation: the objective it speaks of; None where there is none yet.
        sentence: the claim.
        remarks: what one has to know beside it.
    """

    verdict: str
    equation: str | None
    sentence: str
    remarks: tuple[str, ...] = ()


def headline(run: Run, rows: list[Row]) -> Headline:
    """What to say at the top of the report, wherever the run stands."""
    best = best_row(rows)
    if best is not None:
        return _confirmed(run, best)
    leader = _leader(run)
    if leader is None:
        return Headline("open", None, _nothing(run))
    metric = run.config.metric
    teacher = run.study.user_attrs.get(f"teacher_{metric}")
    beside = [f"{name} {value:.4f}" for name, value in search_baselines(run).items()]
    beside += [f"the teacher {teacher:.4f}"] if teacher is not None else []
    text = f"Best so far: trial {leader.number}, validation {metric} {leader.values[0]:.4f}"
    text += f" ({', '.join(beside)})." if beside else "."
    return Headline(
        "open",
        leader.user_attrs.get("equation"),
        text,
        ("One seed, chosen as the best of many: expect less of it until the finals have confirmed it.",),
    )


def _confirmed(run: Run, best: Row) -> Headline:
    split = "test" if best["test"] else "validation"
    scores, metric = best[split], run.config.metric
    sign = 1 if run.finals_ledger.primary == "maximize" else -1
    parts, verdicts = [], []
    for key, name in RIVALS:
        gain = scores[key]
        if gain is not None:
            verdict = _verdict(gain, sign)
            verdicts.append(verdict)
            parts.append(f"{mean_text(gain, signed=True)} over {name} ({_reading(gain, verdict)})")
    seeds = f"{scores['n']} seed{'s' if scores['n'] > 1 else ''}"
    name = "the best recipe found" if best["role"] == "finalist" else best["label"]
    claim = f"On {split} {name} reaches {metric} {mean_text(scores)} over {seeds}"
    claim += f": {' and '.join(parts)}." if parts else "; the baselines of the same student are not there yet."
    if best["role"] != "finalist":
        claim = f"No recipe found beats plain KD. {claim}"
        verdicts = ["noise"]
    remarks = ["± is the 95 % confidence interval; differences are paired by seed, on the same student."]
    if scores["n"] < run.config.finals.seeds:
        remarks.append(f"{scores['n']} of {run.config.finals.seeds} seeds have been trained so far.")
    if split == "validation":
        remarks.append("The recipe was chosen by validation, which flatters it a little; test has not been looked at.")
    if sign < 0:
        remarks.append(f"Lower {metric} is better.")
    order = ("loss", "noise", "gain")
    verdict = min(verdicts, key=order.index) if verdicts else "open"
    return Headline(verdict, best["equation"], claim, tuple(remarks))


def _verdict(gain: dict[str, Any], sign: int) -> str:
    if not gain["resolved"]:
        return "noise"
    return "gain" if sign * gain["mean"] > 0 else "loss"


def _reading(gain: dict[str, Any], verdict: str) -> str:
    if gain["half_width"] is None:
        return "one seed, which cannot tell a gain from noise"
    if gain["spread"] <= ROUNDING:
        return "the same under every seed: noise unknown" if gain["mean"] else "no difference at all"
    return {"gain": "a gain", "loss": "a loss", "noise": "within the noise of the seeds"}[verdict]


def gains(run: Run, rows: list[Row]) -> list[str]:
    """One line per split on what the best recipe is worth, for the terminal."""
    best = best_row(rows)
    sign = 1 if run.finals_ledger.primary == "maximize" else -1
    lines = []
    for split in ("validation", "test"):
        for key, name in RIVALS:
            scores = best[split] if best else None
            if best and scores and scores[key]:
                reading = _reading(scores[key], _verdict(scores[key], sign))
                lines.append(
                    f"* {best['label']} over {name}, {split}: {mean_text(scores[key], signed=True)} ({reading})"
                )
    if lines:
        lines = ["", *lines, "  ± is the 95 % interval; differences are paired by seed, on the same student"]
    return lines


def _leader(run: Run) -> FrozenTrial | None:
    """The best finished trial that distils."""
    ledger = run.search_ledger
    done = [t for t in ledger.trials(TrialState.COMPLETE) if "duplicate_of" not in t.user_attrs]
    done = [t for t in done if not str(t.user_attrs.get("origin")).startswith("baseline:")]
    return max(done, key=lambda t: t.values[0] * (1 if ledger.primary == "maximize" else -1), default=None)


def search_baselines(run: Run) -> dict[str, float]:
    """The baselines' scores in the search, one seed each."""
    names = {"baseline:none": "no distillation", "baseline:kd": "plain KD"}
    found = {}
    for trial in run.search_ledger.trials(TrialState.COMPLETE):
        if trial.user_attrs.get("origin") in names and "duplicate_of" not in trial.user_attrs:
            found[names[trial.user_attrs["origin"]]] = trial.values[0]
    return found


def _nothing(run: Run) -> str:
    trials = run.search_ledger.trials()
    if not trials:
        return "The search has not started: there is no trial yet."
    if all(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials):
        return "The first trials are under way; none has finished yet."
    failed = sum("failure" in trial.user_attrs for trial in trials)
    stopped = sum("pruned_at" in trial.user_attrs for trial in trials)
    return (
        f"No trial has reached the top of the ladder: of {len(trials)}, {failed} failed and {stopped} were stopped "
        "early. There is no best recipe yet."
    )
