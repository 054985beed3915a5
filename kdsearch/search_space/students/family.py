"""Student architectures: what a family declares, and the table of all families. Importing this needs no torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from kdsearch.parameters import Declared, Value
from kdsearch.registry import Registry, discover

if TYPE_CHECKING:
    from torch import nn

ENTRY_POINTS = "kdsearch.students"
InputShape = tuple[int, int, int]


class StudentFamily(Declared):
    """Networks of one design, spanned by hyper-parameters. A subclass is one file of `families/`.

    Class attributes:
        name: the key it registers under.
        title, paper, year: what it is and where it comes from.
        supports: the branches that `build` can add, such as "distillation_token".
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    supports: ClassVar[frozenset[str]] = frozenset()

    def build(self, input_shape: InputShape, classes: int, *, branches: frozenset[str] = frozenset()) -> nn.Module:
        """The network with fresh random weights, on the CPU: images [B, *input_shape] to logits [B, classes].

        Its attribute `built_for` is the input shape.

        Args:
            input_shape: channels, height, width.
            branches: extra heads that methods have asked for.

        Raises:
            ValueError: a branch that the family does not support, or an input that it cannot take.
        """
        lacking = branches - self.supports
        if lacking:
            offered = ", ".join(sorted(self.supports)) or "none"
            raise ValueError(f"{self.name} has no branch {min(lacking)!r}; it supports {offered}")
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ValueError(f"{self.name} takes an input of (channels, height, width), not {input_shape!r}")
        if classes < 1:
            raise ValueError(f"{self.name} needs at least one class, not {classes!r}")
        network = self.network(input_shape, classes, branches)
        network.built_for = input_shape  # type: ignore[assignment]
        return network

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        """What a family implements: the network for arguments that `build` has checked."""
        raise NotImplementedError(f"{type(self).__name__} defines no network")

    def thinned(self, keep: float) -> Self | None:
        """The same design with about `keep` of its channels, or None where the constructor cannot give it.

        Whoever asks checks that it costs less: a network of the least channels there can be is its own thinned form.
        """
        return None

    def widened(self, factor: float) -> Self | None:
        """The same design with about `factor` times its channels, or None where the constructor cannot give it."""
        return None

    def changed(self, **hyper: Value) -> Self | None:
        """The same family with some hyper-parameters replaced; None where that leaves their domain."""
        try:
            return type(self)(**{**self.hyper, **hyper})
        except ValueError:
            return None


STUDENTS: Registry[StudentFamily] = Registry(
    "student family", partial(discover, ENTRY_POINTS, f"{__package__}.families")
)
register = STUDENTS.register


def names() -> list[str]:
    """All registered families."""
    return STUDENTS.names()


def create(name: str, /, **hyper: Any) -> StudentFamily:
    """A family by name, its hyper-parameters checked.

    Raises:
        ValueError: unknown name or hyper-parameter, or a value outside its domain.
    """
    return STUDENTS[name](**hyper)
