"""fitnets: golden numbers with the regressor, its stages, unequal shapes, hazards, and a short training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import kd_methods
from kdsearch.kd_methods import Stage, StageSpec
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.features._fitnets import Regressor

from .feature_golden import document, fill, module_gradients_agree
from .feature_signals import batch_of, data, learns, map_stage, model, signals, token_stage
from .golden import agrees, cases, tensors

GOLDEN = "features/fitnet"


def regressor(name: str, student: torch.Tensor, teacher: torch.Tensor) -> Regressor:
    built = Regressor(map_stage(*student.shape[1:]), map_stage(*teacher.shape[1:])).double()
    fill(GOLDEN, name, dict(built.named_parameters()))
    return built


@pytest.mark.parametrize(("case", "arrays"), cases(GOLDEN))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    s, t, *module = case["uses"]
    x = tensors(arrays, s)
    if not module:
        agrees(case, KF.fitnets([x[s]], [x[t]]), x)
        return
    built = regressor(module[0], x[s], x[t])
    loss = KF.fitnets([built(x[s], x[t].shape[-2:])], [x[t]])
    agrees(case, loss, x)
    module_gradients_agree(case, module[0], loss, dict(built.named_parameters()))


@pytest.mark.parametrize("name", sorted(document(GOLDEN)["modules"]))
def test_regressors_have_the_published_shapes(name: str) -> None:
    """`fill` refuses parameters of other names or shapes than the file's."""
    arrays = cases(GOLDEN)[0].values[1]
    suffix = name.removeprefix("convreg_")
    x = tensors(arrays)
    s, t = x[f"s_{suffix}"], x[f"t_{suffix}"]
    out = regressor(name, s, t)(s, t.shape[-2:])
    assert out.shape == t.shape
    assert out.min() == 0


def test_half_sum_is_the_papers() -> None:
    s, t = [torch.randn(4, 3, 2, 2), torch.randn(4, 5)], [torch.randn(4, 3, 2, 2), torch.randn(4, 5)]
    expected = sum(0.5 * (a - b).square().sum() / 4 for a, b in zip(s, t, strict=True))
    torch.testing.assert_close(KF.fitnets(s, t, reduction="half_sum"), expected)
    assert KF.fitnets(s, s) == 0
    with pytest.raises(ValueError, match="'mean' or 'half_sum', not 'sum'"):
        KF.fitnets(s, t, reduction="sum")


def test_stages() -> None:
    hint, rest = kd_methods.create("fitnets", hint_share=0.25).stages()
    assert hint == Stage("hint", 0.25, terms="own", labels=False)
    assert rest == Stage("student", 0.75, terms="others", labels=True)
    assert kd_methods.create("fitnets", staged=False).stages() == ()
    assert kd_methods.create("fitnets").pairing == "middle"
    assert kd_methods.create("fitnets").hyper["weight"] == 100
    with pytest.raises(ValueError, match=r"hint_share must lie in \[0\.01, 0\.99\]"):
        kd_methods.create("fitnets", hint_share=1.0)


SHAPES: dict[str, tuple[list[StageSpec], list[StageSpec]]] = {
    "equal": ([map_stage(4, 6)], [map_stage(6, 6)]),
    "twice": ([map_stage(4, 8)], [map_stage(6, 4)]),
    "half": ([map_stage(4, 4)], [map_stage(6, 8)]),
    "a little larger": ([map_stage(4, 7)], [map_stage(6, 5)]),
    "much larger": ([map_stage(4, 20)], [map_stage(6, 3)]),
    "smaller": ([map_stage(4, 3)], [map_stage(6, 7)]),
    "oblong": ([map_stage(4, 8, 6)], [map_stage(6, 4, 5)]),
    "crossed": ([map_stage(4, 8, 4)], [map_stage(6, 4, 8)]),
    "to tokens": ([map_stage(4, 8)], [token_stage(6, 7, prefix=1)]),
    "from tokens": ([token_stage(4, 7, prefix=2)], [map_stage(6, 8)]),
    "tokens": ([token_stage(4, 4)], [token_stage(6, 7, prefix=0)]),
    "several": ([map_stage(4, 8), map_stage(6, 4)], [map_stage(6, 8), token_stage(8, 4)]),
    "1x1": ([map_stage(4, 1)], [map_stage(6, 1)]),
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("norm", [True, False])
def test_learns(shape: str, norm: bool) -> None:
    student, teacher = (model(stages) for stages in SHAPES[shape])
    learns(kd_methods.create("fitnets", norm=norm), student, teacher, steps=25, lr=0.05, optimizer=torch.optim.Adam)


def test_rectifier_only_for_maps() -> None:
    student = model([map_stage(4, 4), map_stage(4, 4)])
    teacher = model([map_stage(6, 4), token_stage(6, 4)])
    parts = kd_methods.create("fitnets").bind(student, teacher, data())
    guided, _ = parts(signals(student, 3, 0).features, signals(teacher, 3, 1).features)  # type: ignore[misc]
    assert guided[0].min() == 0
    assert guided[1].min() < 0
    unrectified = kd_methods.create("fitnets", relu=False).bind(student, teacher, data())
    guided, _ = unrectified(signals(student, 3, 0).features, signals(teacher, 3, 1).features)  # type: ignore[misc]
    assert guided[0].min() < 0


def test_another_resolution_than_measured() -> None:
    student, teacher = model([map_stage(4, 8)]), model([map_stage(6, 4)])
    method = kd_methods.create("fitnets")
    method.parts = method.bind(student, teacher, data())
    s, t = signals(model([map_stage(4, 6)]), 2, 0), signals(model([map_stage(6, 5)]), 2, 1)
    assert torch.isfinite(method.loss(s, t, batch_of(2)))


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [1, 4])
def test_finite(size: int, dtype: torch.dtype, side: int) -> None:
    student, teacher = model([map_stage(4, side)]), model([map_stage(6, side)])
    method = kd_methods.create("fitnets")
    method.parts = method.bind(student, teacher, data())
    for scale in (0.0, 1.0, 1e4):
        s, t = signals(student, size, 0), signals(teacher, size, 1)
        s.features = [(x * scale).to(dtype).requires_grad_() for x in s.features]
        t.features = [(x * scale).to(dtype) for x in t.features]
        loss = method.loss(s, t, batch_of(size))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(s.features[0].grad).all()  # type: ignore[arg-type]


def test_state_survives() -> None:
    student, teacher = (model(stages) for stages in SHAPES["several"])
    method, other = kd_methods.create("fitnets"), kd_methods.create("fitnets")
    method.parts, other.parts = method.bind(student, teacher, data()), other.bind(student, teacher, data())
    s, t = signals(student, 4, 0), signals(teacher, 4, 1)
    method.loss(s, t, batch_of(4))
    other.parts.load_state_dict(method.parts.state_dict())
    torch.testing.assert_close(method.loss(s, t, batch_of(4)), other.loss(s, t, batch_of(4)))
