"""Proxies: goldens, no mutation, seeds, and NaN is worst."""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdsearch import proxies
from kdsearch.proxies._last import map_and_classifier
from kdsearch.proxies.diswot import relation_similarity, semantic_similarity
from kdsearch.proxies.rejection import reject
from kdsearch.search_space.students.family import create
from tests.goldens.inputs import make_all

GOLDENS = Path(__file__).parent.parent / "goldens" / "features"


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    document = json.loads((GOLDENS / f"{name}.json").read_text())
    table = {k: {**v, "kind": v.get("kind", "normal")} for k, v in document["inputs"].items()}
    table = {k: {**v, "classes": v.get("classes", v.get("num_classes", 0))} for k, v in table.items()}
    return document, {k: torch.from_numpy(np.asarray(v)) for k, v in make_all(table).items()}


def network(description: dict[str, Any]) -> nn.Module:
    """The golden file's tiny network, filled as it says."""
    shapes = {p["param"]: p["shape"] for p in description["params"]}
    first, second = shapes["conv1.weight"][0], shapes["conv2.weight"][0]
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, first, 3, 1, 1, bias=False),
            bn1=nn.BatchNorm2d(first),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(first, second, 3, 2, 1, bias=False),
            bn2=nn.BatchNorm2d(second),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(second, 10),
        )
    ).double()
    state = {}
    for p in description["params"]:
        values = np.random.default_rng(p["seed"]).standard_normal(p["shape"]) * p["scale"] + p["offset"]
        state[p["param"]] = torch.from_numpy(values)
    model.load_state_dict(state, strict=False)
    return model


def test_diswot_parts_match_the_goldens() -> None:
    document, inputs = golden("diswot")
    checked = 0
    for case in document["cases"]:
        metric = case["hyper"]["metric"]
        if metric not in ("relation", "semantic"):
            continue
        teacher, student = (inputs[name] for name in case["uses"])
        student = student.clone().requires_grad_(True)
        function = relation_similarity if metric == "relation" else semantic_similarity
        value = function(student, teacher)
        assert value.item() == pytest.approx(case["loss"], rel=1e-9)
        (gradient,) = torch.autograd.grad(value, student)
        for expected in case["grad"].values():
            assert float(gradient.norm()) == pytest.approx(expected["l2"], rel=1e-8)
            np.testing.assert_allclose(gradient.flatten()[:5].numpy(), expected["first5"], rtol=1e-7, atol=1e-12)
        checked += 1
    assert checked == 2


def test_diswot_end_to_end_matches_the_golden() -> None:
    document, inputs = golden("diswot")
    case = next(c for c in document["cases"] if c["label"] == "end to end")
    teacher, student = (network(document["modules"][name]) for name in ("teacher_net", "student_net"))
    seen = [map_and_classifier(m, inputs["images"], inputs["labels"], "loss") for m in (student, teacher)]
    (s_map, s_gradient), (t_map, t_gradient) = seen
    assert s_gradient is not None
    assert t_gradient is not None
    assert float(t_gradient.norm()) == pytest.approx(case["values"]["t_fc_grad"]["l2"], rel=1e-9)
    assert float(relation_similarity(s_map, t_map)) == pytest.approx(case["relation"], rel=1e-9)
    assert float(semantic_similarity(s_gradient, t_gradient)) == pytest.approx(case["semantic"], rel=1e-9)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)


@pytest.mark.parametrize("name", proxies.names())
def test_scoring_changes_nothing_and_follows_its_seed(name: str, batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = create("cnn", channels=4).build((1, 8, 8), 10).eval(), create("cnn").build((1, 8, 8), 10)
    before = copy.deepcopy(student.state_dict())
    global_state = torch.random.get_rng_state()
    proxy = proxies.create(name)
    shown = [tensor.clone() for tensor in batch]
    first = proxy.score(student, teacher, *batch, seed=3)
    assert math.isfinite(first)
    if name != "latency":  # a measurement
        assert proxy.score(student, teacher, *batch, seed=3) == first
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(batch, shown, strict=True))
    assert not student.training
    assert torch.equal(global_state, torch.random.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in (*student.parameters(), *teacher.parameters()))
    assert all(not layer._forward_hooks for layer in student.modules())
    if name not in ("autodas", "latency", "macs", "params"):  # sizes know no draw
        assert proxy.score(student, teacher, *batch, seed=4) != first


def test_sizes_are_plain_counts(batch: tuple[Tensor, Tensor]) -> None:
    student = create("resnet", depth=8).build((1, 8, 8), 10)
    assert proxies.create("params").score(student, None, *batch, seed=0) == sum(p.numel() for p in student.parameters())
    assert proxies.create("macs").score(student, None, *batch, seed=0) > 0


def test_diswot_scores_students_of_every_width_on_one_scale(batch: tuple[Tensor, Tensor]) -> None:
    teacher = create("cnn", channels=8).build((1, 8, 8), 10)
    widths = [create("cnn", channels=c).build((1, 8, 8), 10) for c in (4, 8, 12)]
    semantic = [proxies.create("diswot", part="semantic").score(s, teacher, *batch, seed=0) for s in widths]
    assert max(semantic) < 0
    assert min(semantic) > 4 * max(semantic)
    other = create("cnn", channels=8).build((1, 8, 8), 7)
    both = [proxies.create("diswot", part=part).score(widths[0], other, *batch, seed=0) for part in ("sum", "relation")]
    assert both[0] == both[1]
    with pytest.raises(ValueError, match="one shape"):
        proxies.create("diswot", part="semantic").score(widths[0], other, *batch, seed=0)
    with pytest.raises(ValueError, match="no teacher"):
        proxies.create("diswot").score(widths[0], None, *batch, seed=0)


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (1.0, 1.0, None),
        (float("nan"), 1.0, "not finite"),
        (1.0, float("inf"), "gradient is not finite"),
        (1.0, 0.0, "does not reach"),
        (1.0, 1e6, "times the cross-entropy's"),
        (1.0, 1e-6, "times the cross-entropy's"),
    ],
)
def test_rejection(loss: float, norm: float, reason: str | None) -> None:
    found = reject(loss, 1.0, norm)
    assert found is None if reason is None else reason in str(found)


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'diswot'"):
        proxies.create("disswot")
    with pytest.raises(ValueError, match="did you mean 'part'"):
        proxies.create("diswot", parts="sum")
