"""What a config tells its searcher of decisions: whether the space knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdsearch.parameters import Choices
from kdsearch.registry import nearest
from kdsearch.search_space.space import SearchSpace


def check_told(told: Mapping[str, Any], space: SearchSpace) -> None:
    """Raises ValueError: some name is no decision of the space, or some choice is none of the decision's.

    Args:
        told: option of the searcher -> decision -> its value, or its choices with weights.
    """
    known = space.decisions()
    for option, by_name in told.items():
        where = f"searcher.options.{option}"
        for name, said in (by_name or {}).items():
            if name not in known:
                alike = [other for other in known if other.split(".")[0] == str(name).split(".")[0]]
                plain = [other for other in known if "." not in other]
                raise ValueError(f"{where}: the space asks for no {name!r}; {nearest(name, alike or plain)}")
            parameter = known[name]
            if isinstance(parameter, Choices):
                offered = parameter.searched or parameter.options
                for choice in said if isinstance(said, Mapping) else [said]:
                    if choice not in offered:
                        raise ValueError(f"{where}: {name} has no {choice!r}; {nearest(choice, map(str, offered))}")
