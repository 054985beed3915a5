"""labels: the neutral choice changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals


def test_neutral() -> None:
    method: Any = kd_methods.create("labels")
    assert method.label_weight() == 1.0
    assert method.hyper == {}
    assert method.views() == ()
    assert not method.needs.student
    assert not method.needs.teacher


def test_has_no_term() -> None:
    batch = Batch(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(TypeError, match="labels is a targets method and has no loss"):
        kd_methods.create("labels").loss(Signals(torch.zeros(1, 2)), Signals(torch.zeros(1, 2)), batch)
