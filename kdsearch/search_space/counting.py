"""How many recipes a space holds: every branch of the walk followed once, what is left open below multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Choices, Parameter, Value
from kdsearch.search_space.narrowing import count

if TYPE_CHECKING:
    from kdsearch.search_space.space import SearchSpace


class Counter:
    """Walks every branch of a space once."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def result(self) -> tuple[int, int]:
        total, deepest = 0, 0
        stack: list[tuple[str, ...]] = [()]
        while stack:
            prefix = stack.pop()
            branch, structures, continuous = self._follow(prefix)
            if branch is None:
                total += structures
                deepest = max(deepest, continuous)
            else:
                stack.extend((*prefix, str(option)) for option in branch)
        return total, deepest

    def _follow(self, prefix: tuple[str, ...]) -> tuple[tuple[Value, ...] | None, int, int]:
        """Replay the structural answers of a prefix; stop at the first new one and give its options."""
        answers = iter(prefix)
        structures, continuous = 1, 0

        class Branch(Exception):
            pass

        found: list[tuple[Value, ...]] = []

        def choose(name: str, parameter: Parameter) -> Value:
            nonlocal structures, continuous
            if "." not in name or name == "student.transform":
                assert isinstance(parameter, Choices)
                answer = next(answers, None)
                if answer is None:
                    found.append(parameter.searched or parameter.options)
                    raise Branch
                return answer
            number = count(parameter)
            if number is None:
                continuous += 1
            else:
                structures *= number
            return parameter.default

        try:
            self.space.walk(choose)
        except Branch:
            return found[0], 0, 0
        return None, structures, continuous
