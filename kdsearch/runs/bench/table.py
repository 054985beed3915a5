"""The table itself: one row per recipe and seed, in one Parquet file that says how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdsearch import yaml_text
from kdsearch.errors import UserError
from kdsearch.registry import nearest
from kdsearch.runs import config_file
from kdsearch.runs.bench.grid import Grid
from kdsearch.runs.config import RunConfig
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.metrics import DIRECTIONS
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

HEADER = b"kdsearch"


def read_config(path: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, Grid]:
    """A run config with `cells` beside its sections.

    Raises:
        UserError: as for any config.
    """
    data = yaml_text.load(path.read_text())
    cells = data.pop("cells", {})
    config = config_file.check(config_file.override(data, overrides), str(path))
    return config, Grid(SearchSpace.from_dict(config.space), cells)


def described(recipe: Recipe, size: Mapping[str, float]) -> dict[str, Any]:
    """What a row says of the recipe itself."""
    return {"spec": recipe.to_dict(), "parameters": size["parameters"], "macs": size["macs"]}


def pack(
    path: Path, config: RunConfig, grid: Grid, rows: Iterable[Mapping[str, Any]], invalid: Iterable[str] = ()
) -> str:
    """Write rows as `benchmarks/kdbench/make.py` makes them into one Parquet file; says what it holds.

    Args:
        invalid: hashes of the grid's recipes that cannot work: no row is missing for them.

    Raises:
        UserError: assistants taught in some row, and none tells what they cost.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rungs = [rung.fidelity() for rung in config.fidelity.rungs]
    tabulated = {recipe.hash for recipe in grid.recipes()}
    unique = {(row["recipe"], row["seed"]): row for row in rows if row["recipe"] in tabulated}
    assistants = _assistants(unique.values())
    flat = []
    for (name, seed), row in sorted(unique.items(), key=lambda entry: (entry[0][1], entry[0][0])):
        line: dict[str, Any] = {"recipe": name, "seed": seed, "spec": json.dumps(row["spec"], sort_keys=True)}
        line |= {"parameters": row["parameters"], "macs": row["macs"], "failure": row["failure"]}
        line |= {f"test_{key}": value for key, value in row.get("test", {}).items()}
        for rung, found in row["rungs"].items():
            line |= {f"{rung}_{key}": found[key] for key in ("score", "nll", "seconds", "curve")}
            if found.get("assisted"):
                if _company(row, rung) not in assistants:
                    raise UserError(f"--pack: no row tells what the assistants of {name} cost (seed {seed}, {rung})")
                line[f"{rung}_seconds"] += assistants[_company(row, rung)]
        flat.append(line)
    table = pa.Table.from_pandas(_small(pd.DataFrame(flat)), preserve_index=False)
    header = {
        "space": grid.space.to_dict(),
        "cells": grid.cells,
        "rungs": [rung.to_dict() for rung in rungs],
        "metric": config.metric,
        "data": config.data.model_dump(mode="json", exclude_none=True, exclude={"root"}),
        "fidelity": config.fidelity.model_dump(mode="json"),
        "invalid": sorted(invalid),
    }
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), HEADER: json.dumps(header).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", compression_level=12)
    recipes = len({row["recipe"] for row in flat})
    return f"{path}: {recipes} recipes, {len(flat)} rows, {path.stat().st_size / 2**20:.2f} MiB"


def _company(row: Mapping[str, Any], rung: str) -> tuple[str, ...]:
    """What the same assistants have taught; students of about one size have them in common."""
    return json.dumps(row["spec"]["teaching"]), str(row["seed"]), rung


def _assistants(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], float]:
    """Processor seconds of assistants: told by the row that paid them, charged to all that learnt from them."""
    out: dict[tuple[str, ...], float] = {}
    for row in rows:
        for rung, found in row["rungs"].items():
            if found.get("paid"):
                out[_company(row, rung)] = max(found["paid"], out.get(_company(row, rung), 0.0))
    return out


def _small(frame: pd.DataFrame) -> pd.DataFrame:
    """Single precision is more than any of these numbers has."""
    for column in frame.columns:
        if frame[column].dtype == np.float64:
            frame[column] = frame[column].astype(np.float32)
        elif column.endswith("_curve"):
            found = [np.array(v, np.float32) if isinstance(v, list) else None for v in frame[column]]
            frame[column] = pd.Series(found, index=frame.index, dtype=object)
    return frame


@dataclass(frozen=True)
class Entry:
    """One recipe under one seed.

    Attributes:
        scores, seconds: by rung, in the ladder's order: what it is judged by, and its cost. Empty after a failure.
        curves: the validation metric after each epoch, by rung.
        failure: why training ended, or None.
    """

    scores: dict[str, float]
    seconds: dict[str, float]
    curves: dict[str, list[float]]
    failure: str | None


class Table:
    """All recipes of a benchmark, with what was found of each under each seed.

    Attributes:
        frame: the rows, as a pandas data frame: `recipe` (hash), `seed`, `spec` (the recipe as JSON), `parameters`,
            `macs`, `failure`, `test_accuracy`, `test_nll`, and per rung `<rung>_score`, `_nll`, `_seconds`, `_curve`.
        grid: the space and its cells.
        rungs: the ladder, the full training last.
        seeds: all of them.
        metric, maximise: what searchers are shown and judged by.

    Raises:
        UserError: no such metric.
        ValueError: a header or frame of another kind.
    """

    def __init__(self, frame: pd.DataFrame, header: Mapping[str, Any], metric: str | None = None) -> None:
        self.frame, self.header = frame, dict(header)
        self.grid = Grid(SearchSpace.from_dict(header["space"]), header["cells"])
        self.rungs = [Fidelity(**rung) for rung in header["rungs"]]
        self.metric = str(header["metric"]) if metric is None else metric
        known = (str(header["metric"]), "nll")
        if self.metric not in known:
            raise UserError(f"--metric: {self.metric!r}: {nearest(self.metric, known)}")
        self._score = "nll" if self.metric == "nll" else "score"
        self.maximise = DIRECTIONS[self.metric] == "maximize"
        found = [f"{rung.name}_{key}" for rung in self.rungs for key in (self._score, "nll", "seconds", "curve")]
        lacking = {"recipe", "seed", "spec", "failure", f"test_{self.metric}", *found} - {*frame.columns}
        if lacking:
            raise ValueError(f"it has no column {min(lacking)!r}")
        self.seeds = sorted(int(s) for s in frame["seed"].unique())

    @cached_property
    def entries(self) -> dict[tuple[str, int], Entry]:
        """By recipe hash and seed."""
        names = {rung.name: rung for rung in self.rungs}
        out = {}
        for row in self.frame.to_dict("records"):
            failed = isinstance(row["failure"], str)
            found = {} if failed else names
            out[str(row["recipe"]), int(row["seed"])] = Entry(
                {
                    name: rung.judged(
                        float(row[f"{name}_{self._score}"]), {"nll": float(row[f"{name}_nll"])}, maximise=self.maximise
                    )
                    for name, rung in found.items()
                },
                {name: float(row[f"{name}_seconds"]) for name in found},
                {name: [float(v) for v in row[f"{name}_curve"]] for name in found},
                row["failure"] if failed else None,
            )
        return out

    def check_whole(self) -> None:
        """Raises UserError: some recipe that can work was not trained, so that no search can be answered."""
        invalid = set(self.header.get("invalid", ()))
        valid = [recipe.hash for recipe in self.grid.recipes() if recipe.hash not in invalid]
        missing = sum(any((name, seed) not in self.entries for seed in self.seeds) for name in valid)
        if missing:
            raise UserError(
                f"--table: {missing} of {len(valid)} recipes of this space were not trained: searchers cannot be "
                "compared on it; `kdsearch bench rungs` can"
            )

    @cached_property
    def truth(self) -> dict[str, float]:
        """What a recipe is worth: its mean over all seeds on the test split, which no searcher is shown. By hash.

        Recipes that failed under a seed are left out.
        """
        return {str(name): float(value) for name, value in self._mean(f"test_{self.metric}").items()}

    @cached_property
    def validation(self) -> dict[str, float]:
        """Mean of the full training's validation score over all seeds, as a run's finals measure it. By hash."""
        return {str(name): float(value) for name, value in self._mean(f"{self.rungs[-1].name}_{self._score}").items()}

    def confirmed(self, names: Iterable[str]) -> str:
        """Of these recipes the one with the best validation score over all seeds: what finals would hand out."""
        sign = 1.0 if self.maximise else -1.0
        return max(names, key=lambda name: (sign * self.validation.get(name, -sign * math.inf), name))

    def floor(self, seed: int, finalists: int) -> float:
        """The regret of a search that has seen every recipe under this seed: what chance leaves of it."""
        sign = 1.0 if self.maximise else -1.0
        last = self.rungs[-1].name
        seen = {n: self.entries[n, seed].scores[last] for n in self.truth if (n, seed) in self.entries}
        return self.regret(self.confirmed(sorted(seen, key=lambda n: (-sign * seen[n], n))[:finalists]))

    def _mean(self, column: str) -> pd.Series[float]:
        whole = self.frame.groupby("recipe")["failure"].transform("count") == 0
        return self.frame[whole].groupby("recipe")[column].mean()

    @cached_property
    def best(self) -> float:
        """The truth of the best recipe."""
        return max(self.truth.values()) if self.maximise else min(self.truth.values())

    @cached_property
    def worst(self) -> float:
        """The edge of the worst hundredth: diverging recipes may lie any distance beyond it."""
        return float(np.quantile(list(self.truth.values()), 0.01 if self.maximise else 0.99))

    def regret(self, name: str) -> float:
        """How far the recipe of this hash lies behind the best, at most as far as `worst`; failing ones lie there."""
        value = self.truth.get(name, self.worst)
        found = (value, self.worst) if self.maximise else (-value, -self.worst)
        return (self.best if self.maximise else -self.best) - max(found)

    def recipe(self, name: str) -> Recipe:
        """The recipe of a hash."""
        return Recipe.from_dict(json.loads(self._specs[name]))

    @cached_property
    def _specs(self) -> dict[str, str]:
        return dict(zip(self.frame["recipe"], self.frame["spec"], strict=True))


def load(path: str | Path, metric: str | None = None) -> Table:
    """A table from its file, seen by the metric it was made for or by "nll", which tells close recipes apart better.

    Raises:
        UserError: no such file, or not a table of this kind; no such metric; or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("reading a benchmark's table needs pyarrow: pip install 'kdsearch[bench]'") from None
    try:
        with Path(path).open("rb") as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--table: cannot read {str(path)!r}: {reason}") from None
    header = (table.schema.metadata or {}).get(HEADER)
    if header is None:
        raise UserError(f"--table: {str(path)!r} is a Parquet file, but no benchmark of recipes")
    try:
        return Table(table.to_pandas(), json.loads(header), metric)
    except ValueError as error:
        raise UserError(f"--table: {str(path)!r} cannot be used: {error}") from None
