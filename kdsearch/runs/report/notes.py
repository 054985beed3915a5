"""How trials were carried out where that is worth a word: what supplied the teacher's signals, what was thinned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsearch.runs.ledger import RUNG
from kdsearch.runs.report.outcomes import FINAL, PROXIES

if TYPE_CHECKING:
    from kdsearch.runs.run import Run


@dataclass(frozen=True)
class Note:
    """One remark and how many trainings of which rungs carry it."""

    text: str
    rungs: tuple[str, ...]
    count: int


def notes(run: Run) -> list[Note]:
    """Every distinct note of the rungs of search and finals, the most frequent first."""
    found: dict[str, dict[str, int]] = {}
    for ledger in (run.search_ledger, run.finals_ledger):
        for trial in ledger.trials():
            if "duplicate_of" in trial.user_attrs:
                continue
            for key, value in trial.user_attrs.items():
                if key.startswith(RUNG):
                    for text in value.get("notes") or ():
                        rungs = found.setdefault(text, {})
                        rungs[key.removeprefix(RUNG)] = rungs.get(key.removeprefix(RUNG), 0) + 1
    ladder = [PROXIES, *(rung.name for rung in run.config.fidelity.rungs), FINAL]
    rows = [Note(text, tuple(sorted(rungs, key=ladder.index)), sum(rungs.values())) for text, rungs in found.items()]
    return sorted(rows, key=lambda note: (-note.count, note.text))
