"""A space's YAML: names and ranges read slot by slot, every problem kept, and written out again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdsearch import yaml_text
from kdsearch.kd_methods import LOSS_SLOTS, METHODS, KDMethod
from kdsearch.parameters import Choices, Declared, Parameter
from kdsearch.registry import Registry, nearest
from kdsearch.search_space.narrowing import narrow
from kdsearch.search_space.recipe import NEUTRAL
from kdsearch.search_space.students.family import STUDENTS
from kdsearch.search_space.students.transforms import TRANSFORMS

NONE = "none"
PRESETS = Path(__file__).parent / "presets"


def _table(slot: str) -> Registry[Any]:
    return {"student": STUDENTS, "transform": TRANSFORMS}.get(slot, METHODS)  # type: ignore[return-value]


def _everything(slot: str) -> list[str]:
    if slot == "student":
        return [cls.name for cls in STUDENTS if cls.name != "timm"]  # timm needs a list of model names first
    if slot == "transform":
        return [NONE]
    names = [cls.name for cls in METHODS if cls.slot == slot and cls.searched]
    if slot in LOSS_SLOTS:
        return [NONE, *names]
    return sorted(names, key=lambda name: name != NEUTRAL[slot])


def presets() -> list[str]:
    """Names of the spaces that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def with_preset(data: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The space's own entries over those of the preset it names."""
    own = {key: value for key, value in data.items() if key != "preset"}
    if "preset" not in data:
        return own
    name = data["preset"]
    if name not in presets():
        problems.append(f"space.preset cannot be {name!r}; {nearest(name, presets())}")
        return own
    return {**yaml_text.load((PRESETS / f"{name}.yaml").read_text()), **own}


def read_slot(slot: str, entries: Any, problems: list[str]) -> dict[str, dict[str, Parameter]]:
    """One slot's names and ranges: everything registered for None, a list of names, or names mapped to ranges."""
    where, table = f"space.{slot}", _table(slot)
    if entries is None:
        entries = _everything(slot)
    if isinstance(entries, str):
        entries = [entries]
    if isinstance(entries, list) and all(isinstance(name, str) for name in entries):
        entries = {name: {} for name in entries}
    if not isinstance(entries, Mapping) or not entries:
        problems.append(f"{where} must list names or map them to ranges, not {entries!r}")
        return {}
    out: dict[str, dict[str, Parameter]] = {}
    optional = slot in LOSS_SLOTS
    for name, ranges in entries.items():
        if optional and name == NONE:
            out[NONE] = {}
            continue
        try:
            cls: type[Declared] = table[name]
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        if issubclass(cls, KDMethod) and cls.slot != slot:
            options = ", ".join(m.name for m in METHODS if m.slot == slot)
            problems.append(f"{where}: {name!r} is a {cls.slot} method; {slot} takes {options}")
            continue
        out[name] = _read_hyper(f"{where}.{name}", cls, ranges or {}, problems)
    if optional and NONE not in out and isinstance(entries, Mapping):
        # A loss slot without "none" would force a term into every recipe, baselines included.
        out = {NONE: {}, **out}
    return out


def _read_hyper(where: str, cls: type[Declared], ranges: Any, problems: list[str]) -> dict[str, Parameter]:
    if not isinstance(ranges, Mapping):
        problems.append(f"{where} must map hyper-parameters to values or ranges, not {ranges!r}")
        return {}
    for key in ranges:
        if key not in cls.parameters:
            problems.append(f"{where} has no hyper-parameter {key!r}; {nearest(key, cls.parameters)}")
    return {
        key: narrowed(parameter, ranges.get(key), f"{where}.{key}", problems)
        for key, parameter in cls.parameters.items()
    }


def narrowed(parameter: Parameter, entry: Any, where: str, problems: list[str]) -> Parameter:
    """A declaration narrowed by an entry; a bad entry is added to the problems."""
    if entry is None:
        return parameter
    try:
        return narrow(parameter, entry, where)
    except ValueError as error:
        problems.append(str(error))
        return parameter


def written(parameter: Parameter) -> Any:
    """A range as YAML that `narrow` reads back."""
    if isinstance(parameter, Choices):
        options = list(parameter.searched or parameter.options)
        if len(options) == 1:
            return options[0]
        numeric = all(isinstance(o, int | float) and not isinstance(o, bool) for o in options)
        return {"values": options} if numeric else options
    if parameter.low == parameter.high:
        return parameter.low
    return {"low": parameter.low, "high": parameter.high, "log": parameter.log}
