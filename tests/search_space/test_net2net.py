"""Net2Net's two operations against executed third-party code, and the declaration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.search_space import students
from kdsearch.search_space.students import TRANSFORMS
from kdsearch.search_space.students.growth.deepening import deeper, rectified, undoing
from kdsearch.search_space.students.growth.widening import copied, copies, draw, wider
from tests.kd_methods.golden import agrees

GOLDEN = json.loads((Path(__file__).parent.parent / "goldens/features/net2net.json").read_text())
WIDER, DEEPER = GOLDEN["cases"]


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def normal(name: str) -> Tensor:
    """A tensor of the golden case, drawn from its seed."""
    return torch.from_numpy(np.random.default_rng(WIDER["seeds"][name]).standard_normal(WIDER["shapes"][name]))


def test_the_wider_pair_is_the_golden_one() -> None:
    # The reference keeps weights as [in, out].
    weight, bias, following = normal("w1").T, normal("b1"), normal("w2").T
    sources = torch.tensor([*range(4), *WIDER["drawn_indices"]])
    wide, wide_bias, after = wider(weight, bias, following, sources)
    assert wide_bias is not None
    assert len(wide) == WIDER["new_width"]
    agrees({"loss": WIDER["W1_sum"]}, wide.sum(), {})
    np.testing.assert_allclose(wide_bias, WIDER["B1"], rtol=1e-9)
    np.testing.assert_allclose(after.T, WIDER["W2_full"], rtol=1e-9)
    x = normal("x")
    out = F.linear(F.relu(F.linear(x, wide, wide_bias)), after)
    agrees({"loss": WIDER["output_l2"]}, out.norm(), {})
    np.testing.assert_allclose(out.flatten()[:5], WIDER["output_first5"], rtol=1e-9)
    before = F.linear(F.relu(F.linear(x, weight, bias)), following)
    assert float((out - before).abs().max()) < 1e-12


def test_the_deeper_layer_is_the_golden_one() -> None:
    rows, columns, inputs, outputs = DEEPER["identity_kernel_shape (kh,kw,in,out)"]
    weight, bias = deeper(outputs, (rows, columns), dtype=torch.float64)
    assert weight.shape == (outputs, inputs, rows, columns)
    agrees({"loss": DEEPER["identity_sum"]}, weight.sum(), {})
    x = torch.randn(2, inputs, 6, 6, generator=seeded(0), dtype=torch.float64)
    once = x.relu()
    again = F.conv2d(once, weight, bias, padding=1).relu()
    assert float((again - once).abs().max()) == DEEPER["max_abs_diff_with_relu"]
    # As the reference found for another input, tanh is not preserved.
    assert float((F.conv2d(x.tanh(), weight, bias, padding=1).tanh() - x.tanh()).abs().max()) > 0.1


@pytest.mark.parametrize("activation", [torch.tanh, F.gelu, F.relu])
def test_wider_convolutions_compute_the_same(activation: Any) -> None:
    weight, bias, following = (
        torch.randn(shape, generator=seeded(k), dtype=torch.float64)
        for k, shape in enumerate([(5, 3, 3, 3), (5,), (4, 5, 1, 1)])
    )
    x = torch.randn(2, 3, 7, 7, generator=seeded(9), dtype=torch.float64)
    wide, wide_bias, after = wider(weight, bias, following, draw(5, 13, seeded(4)))
    before = F.conv2d(activation(F.conv2d(x, weight, bias)), following)
    now = F.conv2d(activation(F.conv2d(x, wide, wide_bias)), after)
    torch.testing.assert_close(now, before, rtol=1e-12, atol=1e-12)
    noisy, _, _ = wider(weight, bias, following, draw(5, 13, seeded(4)), noise=1e-2, generator=seeded(5))
    moved = (noisy - wide).flatten(1).std(1) / weight.std()
    assert torch.equal(moved == 0, torch.arange(13) < 5)
    assert moved[5:].mean() == pytest.approx(1e-2, rel=0.3)


def test_drawing() -> None:
    sources = draw(4, 11, seeded(1))
    assert torch.equal(sources[:4], torch.arange(4))
    assert int(sources.max()) < 4
    assert torch.equal(sources, draw(4, 11, seeded(1)))
    assert any(not torch.equal(sources, draw(4, 11, seeded(seed))) for seed in range(2, 6))
    assert torch.equal(draw(4, 12, seeded(1), even=True).bincount(), torch.full((4,), 3))
    assert copies(torch.tensor([0, 1, 0, 0])).tolist() == [3, 1, 3, 3]
    assert copied(torch.tensor([0, 1, 0, 0])).tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="4 units cannot be widened to 3"):
        draw(4, 3, seeded(1))
    with pytest.raises(ValueError, match="multiple"):
        draw(4, 6, seeded(1), even=True)


def test_what_cannot_be_widened_or_deepened() -> None:
    weight, following = torch.ones(3, 2), torch.ones(4, 3)
    for sources in ([0, 1, 1], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match="each of the 3 units"):
            wider(weight, None, following, torch.tensor(sources))
    with pytest.raises(ValueError, match="must read 3 units, not 5"):
        wider(weight, None, torch.ones(4, 5), torch.arange(3))
    with pytest.raises(ValueError, match="negative"):
        wider(weight, None, following, torch.arange(3), noise=-1.0)
    with pytest.raises(ValueError, match="no centre"):
        deeper(4, (2, 2))
    with pytest.raises(ValueError, match="groups must be 1 or 4"):
        deeper(4, (3, 3), groups=2)


def test_linear_and_depthwise_identities() -> None:
    x = torch.randn(2, 4, 5, 5, generator=seeded(0))
    weight, bias = deeper(4, (5, 3), groups=4)
    assert torch.equal(F.conv2d(x, weight, bias, padding=(2, 1), groups=4), x)
    assert torch.equal(F.linear(x, *deeper(5)), x)


def test_a_normalisation_that_undoes_itself() -> None:
    mean, variance = torch.tensor([0.5, -2.0]), torch.tensor([3.0, 0.0])
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean, norm.running_var = mean, variance
    norm.weight.data, norm.bias.data = undoing(mean, variance, norm.eps)
    x = torch.randn(3, 2, 4, 4, generator=seeded(0))
    torch.testing.assert_close(norm(x), x)


def test_moments_of_rectified_values() -> None:
    mean, deviation = torch.tensor([0.0, 1.5, -1.0, 2.0]), torch.tensor([1.0, 0.5, 2.0, 0.0])
    x = (mean + deviation * torch.randn(200_000, 4, generator=seeded(0))).relu()
    found = rectified(mean.double(), deviation.double().square())
    torch.testing.assert_close(found[0].float(), x.mean(0), rtol=0.02, atol=1e-6)
    torch.testing.assert_close(found[1].float(), x.var(0), rtol=0.02, atol=1e-6)


def test_the_smaller_student() -> None:
    make = TRANSFORMS["net2net"]
    both: Any = make(size=0.5, depth=True)
    deep: Any = make(size=1.0, depth=True)
    assert (
        both.smaller(students.create("resnet", depth=20, width=1.0)).hyper.items() >= {"depth": 8, "width": 0.5}.items()
    )
    assert (
        deep.smaller(students.create("wrn", depth=28, width=2.0)).hyper.items() >= {"depth": 16, "width": 2.0}.items()
    )
    assert deep.smaller(students.create("vit", depth=6)).hyper["depth"] == 3
    assert deep.smaller(students.create("mobilenetv2", depth=1.0)).hyper["depth"] == 0.5
    assert deep.smaller(students.create("nasbench201", cells=5)).hyper["cells"] == 3
    assert (
        deep.smaller(students.create("resnet_s1", blocks1=4, blocks2=1)).hyper.items()
        >= {
            "blocks1": 2,
            "blocks2": 1,
        }.items()
    )
    assert make(size=0.25).smaller(students.create("cnn", channels=16)).hyper["channels"] == 4  # type: ignore[attr-defined]
    for transform, family in ((deep, students.create("resnet", depth=8)), (deep, students.create("cnn"))):
        with pytest.raises(ValueError, match="no shallower form"):
            transform.smaller(family)
    for family in (students.create("cnn", channels=2), students.create("timm")):
        with pytest.raises(ValueError, match=r"no form with 0\.5 of its channels"):
            both.smaller(family)


def test_the_declaration() -> None:
    transform: Any = TRANSFORMS["net2net"]
    with pytest.raises(ValueError, match="nothing to grow"):
        transform(size=1.0).smaller(students.create("resnet"))
    model = students.create("cnn", channels=4).build((1, 8, 8), 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert transform().apply(model) is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
