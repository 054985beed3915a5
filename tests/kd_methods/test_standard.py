"""standard: augmentation on, nothing mixed."""

from __future__ import annotations

from typing import Any

from kdsearch import kd_methods
from kdsearch.kd_methods import ViewPolicy


def test_neutral() -> None:
    method: Any = kd_methods.create("standard")
    assert method.policy() == ViewPolicy(augment=True, mixup=0.0, cutmix=0.0)
    assert method.label_weight() == 1.0
    assert not method.needs_teacher
