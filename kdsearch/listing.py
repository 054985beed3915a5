"""Tables of everything registered, read off the registries: for the command line and the documentation."""

from __future__ import annotations

from typing import Any

from kdsearch.parameters import Declared


def _ranges(cls: type[Declared]) -> dict[str, str]:
    return {name: parameter.describe() for name, parameter in cls.parameters.items()}


def methods() -> list[dict[str, Any]]:
    """The catalogue of distillation methods, by slot."""
    from kdsearch.kd_methods import METHODS, SLOTS

    return [
        {
            "name": cls.name,
            "slot": cls.slot,
            "title": cls.title,
            "year": cls.year,
            "paper": cls.paper,
            "needs": sorted(need.value for need in cls.needs.student | cls.needs.teacher),
            "parameters": _ranges(cls),
        }
        for cls in sorted(METHODS, key=lambda c: (SLOTS.index(c.slot), c.year, c.name))
    ]


def students() -> list[dict[str, Any]]:
    """Student families, then the transformations that apply to them."""
    from kdsearch.search_space.students.family import STUDENTS
    from kdsearch.search_space.students.transforms import TRANSFORMS

    rows = []
    for kind, table in (("family", STUDENTS), ("transform", TRANSFORMS)):
        rows += [
            {"name": cls.name, "kind": kind, "title": cls.title, "year": cls.year, "parameters": _ranges(cls)}
            for cls in table
        ]
    return rows


def proxies() -> list[dict[str, Any]]:
    """Training-free proxies."""
    from kdsearch.proxies import PROXIES

    return [
        {
            "name": cls.name,
            "title": cls.title,
            "year": cls.year or "-",
            "paper": cls.paper,
            "teacher": cls.needs_teacher,
            "parameters": _ranges(cls),
        }
        for cls in PROXIES
    ]


def searchers() -> list[dict[str, Any]]:
    """Searchers, with what each really models of a conditional space."""
    from kdsearch.searchers import SEARCHERS

    return [
        {"name": cls.name, "title": cls.title, "models": cls.models, "parameters": _ranges(cls)} for cls in SEARCHERS
    ]
