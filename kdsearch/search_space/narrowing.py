"""Narrowing a declared hyper-parameter by what a config says: a fixed value, a range, or a shorter list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kdsearch.parameters import Choices, FloatRange, IntRange, Parameter
from kdsearch.registry import nearest


def narrow(parameter: Parameter, entry: Any, where: str) -> Parameter:
    """The declaration, narrowed.

    `entry` is a value (fixed), `[low, high]` or `{low:, high:, log:}` for numbers, a list of options for choices, or
    `{values: [...]}` for a numeric choice.

    Raises:
        ValueError: a value outside the domain or an unreadable entry; the message starts with `where`.
    """
    try:
        if isinstance(entry, Mapping) and set(entry) == {"values"}:
            given = entry["values"]
            if not isinstance(given, list | tuple) or not given:
                raise ValueError(f"takes values as a list with at least one of them, not {given!r}")
            values = tuple(parameter.check(value) for value in given)
            default = parameter.default if parameter.default in values else values[0]
            return Choices(default, values)
        if isinstance(parameter, Choices):
            options = tuple(parameter.check(v) for v in (entry if isinstance(entry, list) else [entry]))
            if not options:
                raise ValueError("has an empty list of options")
            default = parameter.default if parameter.default in options else options[0]
            return replace(parameter, default=default, searched=options)
        if isinstance(entry, Mapping):
            unknown = set(entry) - {"low", "high", "log"}
            if unknown:
                raise ValueError(f"takes low, high and log; {nearest(unknown.pop(), ('low', 'high', 'log', 'values'))}")
            low, high = entry.get("low", parameter.low), entry.get("high", parameter.high)
            log = bool(entry.get("log", parameter.log))
        elif isinstance(entry, list):
            if len(entry) != 2:
                raise ValueError(f"takes [low, high], not {entry!r}; for a list of numbers write {{values: {entry!r}}}")
            low, high, log = entry[0], entry[1], parameter.log
        else:
            low = high = entry
            log = False
        low, high = parameter.check(low), parameter.check(high)
        if low > high:
            raise ValueError(f"has low {low!r} above high {high!r}")
        default = min(max(parameter.default, low), high)
        if isinstance(parameter, IntRange):
            return replace(parameter, default=int(default), low=int(low), high=int(high), log=log and low > 0)
        return replace(parameter, default=float(default), low=float(low), high=float(high), log=log and low > 0)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def fixed(parameter: Parameter) -> bool:
    """Whether one value is all that is left, so that there is nothing to ask."""
    if isinstance(parameter, Choices):
        return len(parameter.searched or parameter.options) == 1
    return parameter.low == parameter.high


def count(parameter: Parameter) -> int | None:
    """How many values there are; None for a continuum."""
    if isinstance(parameter, Choices):
        return len(parameter.searched or parameter.options)
    if isinstance(parameter, IntRange):
        return (parameter.high - parameter.low) // parameter.step + 1
    return 1 if parameter.low == parameter.high else None


def suggest(trial: Any, name: str, parameter: Parameter) -> Any:
    """Ask an Optuna trial for the value."""
    if isinstance(parameter, Choices):
        return trial.suggest_categorical(name, parameter.searched or parameter.options)
    if isinstance(parameter, FloatRange):
        return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
    step = 1 if parameter.log else parameter.step
    return trial.suggest_int(name, parameter.low, parameter.high, step=step, log=parameter.log)
