"""Hyper-parameters declared once, on the class that uses them: default, searched range, legal domain.

    class KD(LogitMethod):
        temperature: float = Float(4.0, low=1, high=20, log=True, domain=(0, inf))

The default is the published value, `low`/`high` the range a search draws from, `domain` what a user may set.
The search space, the command line's tables, config validation and the docs are all read off these declarations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from kdsearch.registry import nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = float | int | str | bool


@dataclass(frozen=True)
class FloatRange:
    """A real number, searched in [low, high], valid in the closed interval `domain`."""

    default: float
    low: float
    high: float
    log: bool = False
    domain: tuple[float, float] = (-math.inf, math.inf)
    doc: str = ""
    kind: ClassVar[str] = "float"

    def check(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {value!r}")
        if not self.domain[0] <= value <= self.domain[1]:
            raise ValueError(f"must lie in [{self.domain[0]:g}, {self.domain[1]:g}], not {value!r}")
        return float(value)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def describe(self) -> str:
        return f"{self.default:g} [{self.low:g}, {self.high:g}]" + (" log" if self.log else "")


@dataclass(frozen=True)
class IntRange:
    """A whole number, searched in low, low + step, ..., high; valid in `domain`."""

    default: int
    low: int
    high: int
    step: int = 1
    log: bool = False
    domain: tuple[float, float] = (-math.inf, math.inf)
    doc: str = ""
    kind: ClassVar[str] = "int"

    def check(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {value!r}")
        if not self.domain[0] <= value <= self.domain[1]:
            raise ValueError(f"must lie in [{self.domain[0]:g}, {self.domain[1]:g}], not {value!r}")
        return value

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=1 if self.log else self.step)

    def describe(self) -> str:
        return f"{self.default} [{self.low}, {self.high}]" + (f" step {self.step}" if self.step != 1 else "")


@dataclass(frozen=True)
class Choices:
    """One of a fixed list. `searched` narrows what a search draws from; every option stays legal."""

    default: Value
    options: tuple[Value, ...]
    searched: tuple[Value, ...] = ()
    doc: str = ""
    kind: ClassVar[str] = "choice"

    def check(self, value: Any) -> Value:
        for option in self.options:
            # 1 == True and 1 == 1.0 in Python; a user who writes 1 for a flag means something else.
            if option == value and isinstance(option, bool) == isinstance(value, bool):
                return option
        names = [str(option) for option in self.options]
        raise ValueError(f"cannot be {value!r}; {nearest(value, names)}")

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.searched or self.options)

    def describe(self) -> str:
        return f"{self.default} {{{', '.join(str(o) for o in self.searched or self.options)}}}"


@dataclass(frozen=True)
class TextChoices(Choices):
    """Free text, such as the name of a model in another library. Any text is legal; a search draws from `searched`."""

    kind: ClassVar[str] = "text"

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or not value or value != value.strip():
            raise ValueError(f"must be a text without blanks around it, not {value!r}")
        return value


Parameter = FloatRange | IntRange | Choices


def Float(
    default: float,
    *,
    low: float,
    high: float,
    log: bool = False,
    domain: tuple[float, float] = (0.0, math.inf),
    doc: str = "",
) -> Any:
    """A real hyper-parameter. `domain` defaults to what is not negative."""
    return FloatRange(default, low, high, log, domain, doc)


def Int(
    default: int,
    *,
    low: int,
    high: int,
    step: int = 1,
    log: bool = False,
    domain: tuple[float, float] = (0, math.inf),
    doc: str = "",
) -> Any:
    """A whole hyper-parameter. `domain` defaults to what is not negative."""
    return IntRange(default, low, high, step, log, domain, doc)


def Choice(default: Value, options: Sequence[Value], *, searched: Sequence[Value] = (), doc: str = "") -> Any:
    """A choice among `options`; a search draws from `searched` where given."""
    return Choices(default, tuple(options), tuple(searched), doc)


def Flag(default: bool, *, searched: Sequence[bool] = (), doc: str = "") -> Any:
    """A switch. Fixed at its default in a search unless `searched` says otherwise."""
    return Choices(default, (False, True), tuple(searched) or (default,), doc)


def Text(default: str, *, searched: Sequence[str] = (), doc: str = "") -> Any:
    """Free text that is checked where it is used. Fixed at its default in a search unless `searched` says otherwise."""
    return TextChoices(default, (default,), tuple(searched), doc)


@dataclass_transform(kw_only_default=True, field_specifiers=(Float, Int, Choice, Flag, Text))
class Declared:
    """Base of everything that declares hyper-parameters as class attributes.

    Subclasses get a keyword-only constructor that checks names and domains; `parameters` lists the declarations in
    order, inherited ones first.
    """

    name: ClassVar[str]
    parameters: ClassVar[dict[str, Parameter]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found: dict[str, Parameter] = {}
        for base in reversed(cls.__mro__):
            for key, value in vars(base).items():
                if isinstance(value, FloatRange | IntRange | Choices):
                    found[key] = value
                elif key in found:  # a subclass fixed an inherited hyper-parameter to a plain value
                    del found[key]
        cls.parameters = found

    def __init__(self, **hyper: Any) -> None:
        """Raises ValueError for an unknown hyper-parameter or a value outside its domain."""
        for key, value in self.check(hyper).items():
            object.__setattr__(self, key, value)

    @classmethod
    def check(cls, hyper: Mapping[str, Any]) -> dict[str, Value]:
        """All hyper-parameters, defaults filled in and values checked."""
        unknown = [key for key in hyper if key not in cls.parameters]
        if unknown:
            raise ValueError(f"{cls.name} has no hyper-parameter {unknown[0]!r}; {nearest(unknown[0], cls.parameters)}")
        checked: dict[str, Value] = {}
        for key, parameter in cls.parameters.items():
            try:
                checked[key] = parameter.check(hyper[key]) if key in hyper else parameter.default
            except ValueError as error:
                raise ValueError(f"{cls.name}.{key} {error}") from None
        return checked

    @property
    def hyper(self) -> dict[str, Value]:
        """The values in force, by name."""
        return {key: getattr(self, key) for key in self.parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.hyper.items())})"
