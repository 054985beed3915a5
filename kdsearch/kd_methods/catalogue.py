"""The table of all methods. Filled on first use by importing every file of the slots' folders, none of which needs
torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kdsearch.kd_methods.method import KDMethod
from kdsearch.registry import Registry

LOSS_SLOTS = ("logits", "features", "relations", "tokens")
SLOTS = (*LOSS_SLOTS, "temperature", "targets", "teaching", "schedule", "data", "optimizer")
ENTRY_POINTS = "kdsearch.kd_methods"


def _discover() -> None:
    here = Path(__file__).parent
    for slot in pkgutil.iter_modules([str(here)]):
        if slot.ispkg:
            for module in pkgutil.iter_modules([str(here / slot.name)]):
                if not module.name.startswith("_"):
                    importlib.import_module(f"kdsearch.kd_methods.{slot.name}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()


METHODS: Registry[KDMethod] = Registry("method", _discover)
register = METHODS.register


def names(slot: str | None = None) -> list[str]:
    """All registered names, or those of one slot."""
    return [cls.name for cls in METHODS if slot is None or cls.slot == slot]


def create(name: str, /, **hyper: Any) -> KDMethod:
    """A method by name, its hyper-parameters checked.

    Raises:
        ValueError: unknown name or hyper-parameter, or a value outside its domain.
    """
    return METHODS[name](**hyper)
