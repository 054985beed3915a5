"""The Pareto front as rows of plain data, and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdsearch.runs.front import front
from kdsearch.runs.report.tables import LABELS, mean_text
from kdsearch.runs.sizes import number
from kdsearch.search_space.recipe import Recipe, student_text

if TYPE_CHECKING:
    from kdsearch.runs.run import Run


def front_rows(run: Run, finals: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per trial of the front, best metric first; empty with one objective. Plain data that JSON takes.

    Args:
        finals: of `finals_rows`; where a recipe was confirmed there, its validation scores are in `confirmed`.
    """
    confirmed = {row["hash"]: row["validation"] for row in finals}
    rows = []
    for trial in front(run.search_ledger):
        recipe = Recipe.from_dict(trial.user_attrs["recipe"])
        rows.append(
            {
                "trial": trial.number,
                "label": LABELS.get(str(trial.user_attrs.get("origin")), "found"),
                "hash": recipe.hash,
                "equation": recipe.equation(),
                "student": student_text(recipe),
                run.config.metric: trial.values[0],
                **dict(zip(run.config.minimise, trial.values[1:], strict=True)),
                "confirmed": confirmed.get(recipe.hash),
            }
        )
    return rows


def front_table(rows: Sequence[Mapping[str, Any]], metric: str, minimise: Sequence[str]) -> str:
    """The front in plain text; empty where there is none."""
    if not rows:
        return ""
    head = ("Pareto front", f"validation {metric}", *minimise, "over seeds", "")
    body = [
        (
            f"trial {row['trial']}",
            f"{row[metric]:.4f}",
            *(number(name, row[name]) for name in minimise),
            mean_text(row["confirmed"]),
            row["student"] if row["label"] == "found" else f"{row['student']}, {row['label']}",
        )
        for row in rows
    ]
    widths = [max(len(line[k]) for line in (head, *body)) for k in range(len(head))]
    last = len(head) - 1
    lines = [
        "  ".join(c.ljust(widths[k]) if k in (0, last) else c.rjust(widths[k]) for k, c in enumerate(line)).rstrip()
        for line in (head, *body)
    ]
    return "\n".join(lines)
