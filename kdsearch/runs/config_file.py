"""A run config's file: read with every problem at once, each by file, key, value and what is allowed; and written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kdsearch import yaml_text
from kdsearch.errors import UserError
from kdsearch.registry import nearest
from kdsearch.runs.address import without_password
from kdsearch.runs.config import RunConfig
from kdsearch.search_space.space import SearchSpace

DEFAULT = Path(__file__).parent / "default.yaml"


def read(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file (the embedded default without one) with `key.path=value` overrides.

    Raises:
        UserError: all problems at once, one line each.
    """
    source = Path(path) if path is not None else DEFAULT
    data = yaml_text.read(source, "config") or {}
    if not isinstance(data, dict):
        raise UserError(f"{source}: must be a mapping of sections, not {type(data).__name__}")
    label = "the embedded default" if path is None else str(path)
    return check(override(data, overrides), label)


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b.c=value` settings; values are read as YAML.

    Raises:
        UserError: a setting without `=`, or through something that is not a mapping.
    """
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set {item!r}: write key.path=value, such as --set budget.trials=20")
        where = data
        *parents, last = key.split(".")
        for parent in parents:
            inner = where.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UserError(f"--set {item!r}: {parent} is not a section")
            where = inner
        try:
            where[last] = yaml_text.load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {item!r}: the value is not readable as YAML") from None
    return data


def check(data: Mapping[str, Any], label: str) -> RunConfig:
    """A checked config of plain data.

    Raises:
        UserError: all problems at once, one line each: place, value, what is allowed.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        lines = [line for problem in error.errors() for line in _explain(problem, data, label)]
        raise UserError("\n".join(lines)) from None


def _explain(problem: Mapping[str, Any], data: Mapping[str, Any], label: str) -> list[str]:
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in problem["loc"][:-1]:
            if isinstance(part, str):  # and no place in a list
                annotation = section.model_fields[part].annotation
                section = next(iter(get_args(annotation)), annotation)
        return [f"{label}: unknown key {key!r}; {nearest(place[-1], section.model_fields)}"]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        expected = re.findall(r"'([^']+)'", problem["ctx"]["expected"])
        message = nearest(problem["input"], expected)
    shown = problem["input"] if not isinstance(problem["input"], dict | list | BaseModel) else None
    value = f" = {shown!r}" if shown is not None else ""
    if key == "space" and problem["type"] == "value_error":  # its problems name their own places
        key = value = ""
    separator = ": " if key else ""
    return [f"{label}: {key}{value}{separator}{line}" for line in message.splitlines()]


def write(config: RunConfig, path: Path) -> None:
    """The resolved config as YAML: every value spelt out, the space with all its ranges, no password."""
    data = config.model_dump(mode="json")
    data["space"] = SearchSpace.from_dict(config.space).to_dict()
    if config.study.storage is not None:
        data["study"]["storage"] = without_password(config.study.storage)
    if config.warm_start.storage is not None:
        data["warm_start"]["storage"] = without_password(config.warm_start.storage)
    path.write_text(yaml_text.dump(data))
