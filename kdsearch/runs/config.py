"""The run config: its sections, with what each may hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from kdsearch import proxies as proxy_room
from kdsearch import searchers as searcher_room
from kdsearch.errors import UserError
from kdsearch.kd_methods import METHODS
from kdsearch.registry import load_plugins, nearest
from kdsearch.runs.fidelity import Fidelity, Judge, Select
from kdsearch.runs.told import check_told
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

METRICS = Literal["accuracy", "balanced_accuracy", "top5", "nll", "cka", "autokd"]
QUANTITY = Literal["parameters", "macs", "memory", "latency"]
QUANTITIES: tuple[QUANTITY, ...] = ("parameters", "macs", "memory", "latency")
"""What a student costs; memory in MiB, latency in milliseconds."""
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("cannot be true or false")
        return value


class DataConfig(Section):
    """What to learn from. `root` is a local folder; nothing is downloaded.

    `image_size` is the side in pixels that images are resized to, `labelled` the share of the training images that keep
    their labels, `unlabelled` a folder of further images.
    """

    name: str = "digits"
    root: str | None = None
    validation: float | None = Field(None, gt=0, lt=0.9)
    samples: int | None = Field(None, ge=1)
    image_size: int | None = Field(None, ge=8)
    shift: int | None = Field(None, ge=0)
    flip: bool | None = None
    crop: float | None = Field(None, gt=0, le=1)
    labelled: float | None = Field(None, gt=0, lt=1)
    unlabelled: str | None = None
    loader_workers: int = Field(0, ge=0)


class TeacherConfig(Section):
    """Who teaches: a family or timm model by name, from a checkpoint, or trained here once for `epochs`.

    `recipe` holds the slots by which it is trained here (targets, logits, optimizer, data, ...); labels alone without
    it. Where its methods need a teacher, an ordinary one of the same architecture is trained first. `seed` is of its
    training; the run's without one.
    """

    model: dict[str, Any] | str = "cnn"
    checkpoint: str | None = None
    epochs: int = Field(60, ge=1)
    recipe: dict[str, Any] | None = None
    seed: int | None = Field(None, ge=0, lt=2**31)
    classes: int | None = Field(None, ge=2)
    mean: list[float] | None = None
    std: list[float] | None = None

    @field_validator("recipe")
    @classmethod
    def _readable(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        for slot in ("student", "transform"):
            if slot in (value or {}):
                raise ValueError(f"the teacher's architecture is teacher.model; a recipe for it has no {slot!r}")
        read = Recipe.from_dict({**(value or {}), "student": "cnn"})  # any student: slots are read on their own
        for slot, node in read.policies.items():
            if METHODS[node.name].student_view:
                raise ValueError(f"{slot}={node.name} changes what a student is shown; a teacher sees what there is")
        return value

    @model_validator(mode="after")
    def _trained_here(self) -> TeacherConfig:
        if self.recipe and self.checkpoint is not None:
            raise ValueError(
                "recipe: a teacher that comes from teacher.checkpoint is not trained; leave one of them out"
            )
        return self


class SearcherConfig(Section):
    name: str = "mcts"
    options: dict[str, Any] = Field(default_factory=dict)
    published: float = Field(0.1, ge=0, le=1)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in searcher_room.names():
            raise ValueError(nearest(value, searcher_room.names()))
        return value


class WarmStartConfig(Section):
    """An earlier run to begin with: its folder, or the storage and name of its study.

    `use` says what its trials are: history (re-created in the new study, where the searcher and the pruner see them;
    same data, teacher and training), priors (hints to searchers that take some), both, or auto: history where it is
    the same world, else priors. Its best `trials` recipes are tried first in any case.
    """

    run: str | None = None
    storage: str | None = None
    study: str = "search"
    use: Literal["auto", "history", "priors", "both"] = "auto"
    trials: int = Field(5, ge=0)

    @model_validator(mode="after")
    def _one_source(self) -> WarmStartConfig:
        if self.run is not None and self.storage is not None:
            raise ValueError("names an earlier run by its folder (run) and by its storage; leave one of them out")
        return self

    @property
    def given(self) -> bool:
        return self.run is not None or self.storage is not None


COMBINED = "combined"


class ProxyConfig(Section):
    """Training-free scores; `prune_by` prunes what ranks below `quantile` of at least `minimum` students seen.

    `combined` learns from the students that have been trained which proxies tell their scores. It prunes only while its
    cross-validated Kendall's tau has a lower 99 % confidence bound of at least `threshold` and is above the parameter
    count's. It reads the parameter count whether `names` holds it or not.
    """

    names: list[str] = Field(default_factory=lambda: ["diswot", "params", "macs", "synflow"])
    prune_by: str | None = COMBINED
    quantile: float = Field(0.1, ge=0, lt=1)
    minimum: int = Field(10, ge=2)
    threshold: float = Field(0.3, ge=-1, lt=1)

    @property
    def scored(self) -> tuple[str, ...]:
        """The proxies that a student is scored by."""
        return tuple(dict.fromkeys((*self.names, "params") if self.prune_by == COMBINED and self.names else self.names))

    @field_validator("names")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in proxy_room.names():
                raise ValueError(f"{name!r}: {nearest(name, proxy_room.names())}")
        return value

    @model_validator(mode="after")
    def _scored(self) -> ProxyConfig:
        known = [*self.names, COMBINED]
        if self.prune_by is not None and self.names and self.prune_by not in known:
            raise ValueError(
                f"prune_by: {self.prune_by!r} is not among the scored proxies; {nearest(self.prune_by, known)}"
            )
        return self


class RungConfig(Section):
    """A rung as shares of the full training: see `kdsearch.runs.fidelity.Fidelity`."""

    name: str
    epochs: float = Field(1.0, gt=0, le=1)
    data: float = Field(1.0, gt=0, le=1)
    keep: Share | list[Share] = 1.0
    resolution: float = Field(1.0, gt=0, le=1)
    tokens: float = Field(1.0, gt=0, le=1)
    select: Select = "balanced"
    judge: Judge = "metric"

    @field_validator("keep", mode="before")
    @classmethod
    def _stages(cls, value: Any) -> Any:
        given = value if isinstance(value, list | tuple) else [value]
        if not given or not all(isinstance(share, int | float) and 0 < share <= 1 for share in given):
            raise ValueError(f"give one share for all stages, or one for each, above 0 and at most 1, not {value!r}")
        return value

    def fidelity(self) -> Fidelity:
        keep = tuple(self.keep) if isinstance(self.keep, list) else self.keep
        shares = (self.epochs, self.data, keep, self.resolution, self.tokens)
        return Fidelity(self.name, *shares, self.select, self.judge)


class FidelityConfig(Section):
    """The full training and the cheaper rungs before it.

    With `calibrate` the first so many trials pass all rungs, and then only rungs whose Kendall's tau to the full
    training is surely above `agreement` may stop trials.
    """

    epochs: int = Field(15, ge=1)
    batch_size: int = Field(64, ge=1)
    views: int | None = Field(None, ge=1)
    rungs: list[RungConfig] = Field(
        default_factory=lambda: [
            RungConfig(name="eighth", epochs=1 / 8, judge="likelihood"),
            RungConfig(name="full"),
        ]
    )
    calibrate: int = Field(0, ge=0)
    agreement: float = Field(0.0, ge=-1, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool | None = None
    evaluations: int = Field(5, ge=1)
    cache_limit_mib: float = Field(2048, ge=0)
    checkpoint_seconds: float = Field(300, gt=0)

    @field_validator("calibrate")
    @classmethod
    def _enough(cls, value: int) -> int:
        if 0 < value < 6:
            raise ValueError("must be 0 (off) or at least 6: fewer trials say nothing about an order")
        return value

    @model_validator(mode="after")
    def _ladder(self) -> FidelityConfig:
        names = [rung.name for rung in self.rungs]
        if not self.rungs or not self.rungs[-1].fidelity().full:
            raise ValueError("rungs: the last one must be a full training (every share of it 1)")
        if self.rungs[-1].judge != "metric":
            raise ValueError("rungs: the last one is judged by the run's metric")
        if len(set(names)) < len(names) or {"proxies", "final"} & set(names):
            raise ValueError(f"rungs: names must differ from one another and from 'proxies' and 'final', not {names}")
        return self


class PrunerConfig(Section):
    """What stops a trial between rungs: Optuna's successive halving (asynchronous), the same with a margin of `margin`
    times a rung's measured noise (`noisy`), the median rule, or nothing.

    Before `startup` trials have completed, nothing is stopped by the median rule and no noise is known.
    """

    name: Literal["asha", "noisy", "median", "none"] = "asha"
    reduction: int = Field(3, ge=2, le=8)
    margin: float = Field(1.0, ge=0)
    startup: int = Field(5, ge=0)


class FinalsConfig(Section):
    """The last comparison: `recipes` beside the baselines, each under `seeds` seeds.

    One score of one seed is a poor judge of close recipes, so twice as many `candidates` first run under `first` seeds,
    and the best of them under the rest.
    """

    recipes: int = Field(3, ge=1)
    seeds: int = Field(5, ge=1)
    candidates: int | None = Field(None, ge=1)
    first: int = Field(2, ge=1)


class LimitsConfig(Section):
    """What a student may cost at most. MACs are of one image; memory and latency of an inference of `batch` images."""

    parameters: int | None = Field(None, ge=1)
    macs: float | None = Field(None, gt=0)
    memory_mib: float | None = Field(None, gt=0)
    latency_ms: float | None = Field(None, gt=0)
    batch: int = Field(1, ge=1)

    def given(self) -> dict[str, float]:
        """The limits that are set, by quantity."""
        values = zip(QUANTITIES, (self.parameters, self.macs, self.memory_mib, self.latency_ms), strict=True)
        return {name: limit for name, limit in values if limit is not None}


class BudgetConfig(Section):
    trials: int | None = Field(40, ge=1)
    seconds: float | None = Field(None, gt=0)

    @field_validator("seconds", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _bounded(self) -> BudgetConfig:
        if self.trials is None and self.seconds is None:
            raise ValueError("give trials, seconds, or both; a search without a budget has no end")
        return self


class EngineConfig(Section):
    """Where trials run. `workers: null` takes one per core (per GPU where there are several)."""

    name: Literal["local", "ray"] = "local"
    workers: int | None = Field(None, ge=1)
    device: str = "auto"
    gpus_per_trial: float = Field(1.0, gt=0)
    cpus_per_trial: float = Field(1.0, gt=0)
    address: str | None = None


class StudyConfig(Section):
    storage: str | None = None
    name: str = "search"


class RunConfig(Section):
    """Everything a run is told. `teachers` are further ones beside `teacher`, for strategies that have use for them."""

    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    teachers: list[TeacherConfig] = Field(default_factory=list)
    space: dict[str, Any] = Field(default_factory=dict)
    limits: LimitsConfig = LimitsConfig()
    searcher: SearcherConfig = SearcherConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    proxies: ProxyConfig = ProxyConfig()
    fidelity: FidelityConfig = FidelityConfig()
    pruner: PrunerConfig = PrunerConfig()
    finals: FinalsConfig = FinalsConfig()
    metric: METRICS = "accuracy"
    minimise: list[QUANTITY] = Field(default_factory=list)
    budget: BudgetConfig = BudgetConfig()
    engine: EngineConfig = EngineConfig()
    study: StudyConfig = StudyConfig()
    seed: int = Field(0, ge=0, lt=2**31)
    cache: str | None = None
    plugins: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _plugged(cls, data: Any) -> Any:
        """The space may name methods of plugins, so these are imported before anything is checked."""
        names = data.get("plugins") if isinstance(data, Mapping) else None
        load_plugins([name for name in names if isinstance(name, str)] if isinstance(names, list) else [])
        return data

    @field_validator("minimise", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("space")
    @classmethod
    def _space(cls, value: dict[str, Any]) -> dict[str, Any]:
        SearchSpace.from_dict(value)
        return value

    @field_validator("minimise")
    @classmethod
    def _once(cls, value: list[QUANTITY]) -> list[QUANTITY]:
        twice = [name for name in value if value.count(name) > 1]
        if twice:
            raise ValueError(f"names {twice[0]} more than once")
        return value

    @model_validator(mode="after")
    def _options(self) -> RunConfig:
        searcher_room.create(self.searcher.name, seed=0, **self.searcher.options)
        takes = searcher_room.SEARCHERS[self.searcher.name].objectives
        if takes is not None and 1 + len(self.minimise) > takes:
            able = [cls.name for cls in searcher_room.SEARCHERS if cls.objectives is None]
            raise ValueError(
                f"minimise: searcher {self.searcher.name} takes a single objective, and {self.metric} is one; "
                f"use {', '.join(able)}"
            )
        told = searcher_room.asked(self.searcher.name, self.searcher.options)
        if any(told.values()):
            check_told(told, SearchSpace.from_dict(self.space))
        return self


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `2h` or `1h30m`."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not text.strip() or match is None:
        raise ValueError(f"must be a duration such as 30m, 90s or 1h30m, not {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def teacher_node(config: TeacherConfig) -> Recipe:
    """The teacher's architecture as a recipe without distillation.

    Raises:
        UserError: unknown family or hyper-parameter.
    """
    model = config.model if isinstance(config.model, dict) else {"family": config.model}
    try:
        return Recipe.from_dict({"student": model}).without_distillation()
    except ValueError as error:
        raise UserError(f"teacher.model: {str(error).removeprefix('student: ')}") from None
