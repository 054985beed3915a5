"""Methods that say their loss is a sum over layer pairs: it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdsearch.kd_methods import METHODS, Batch, DataSpec, ModelSpec, Signals, StageSpec

ADDITIVE = [cls.name for cls in METHODS if cls.additive]


def test_attention_transfer_is_one() -> None:
    assert {"at", "nst", "vid"} <= set(ADDITIVE)


@pytest.mark.parametrize("name", ADDITIVE)
def test_the_whole_is_the_sum_of_its_layers(name: str) -> None:
    torch.manual_seed(0)
    stages = tuple(StageSpec(f"s{k}", "map", c, (8 // 2**k,) * 2, (k + 1) / 3) for k, c in enumerate((6, 8, 12)))
    spec = ModelSpec(stages, 10, (3, 16, 16), embedding=12)
    sides = [
        Signals(torch.randn(16, 10), [torch.randn(16, s.channels, *s.size).relu() for s in stages]) for _ in range(2)
    ]
    for side in sides:
        side.preact = side.features

    def value(chosen: list[int]) -> float:
        method = METHODS[name]()
        kept = replace(spec, stages=tuple(stages[k] for k in chosen))
        method.parts = method.bind(kept, kept, DataSpec(100, 10, (3, 16, 16)))
        if method.parts is not None:
            for parameter in method.parts.parameters():
                torch.nn.init.constant_(parameter, 0.1)  # whatever is drawn, alike in both
        student, teacher = (side.select(chosen) for side in sides)
        with torch.no_grad():
            return float(method.loss(student, teacher, Batch(torch.zeros(16).long(), torch.arange(16))))

    assert value([0, 1, 2]) == pytest.approx(sum(value([k]) for k in range(3)), rel=1e-5)
