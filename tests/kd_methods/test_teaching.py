"""Teaching strategies: goldens of the published objectives, plans, lessons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdsearch import kd_methods
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals, StageSpec
from kdsearch.kd_methods.strategy import AVERAGE, PEERS, SELF

from .golden import agrees, cases, tensors


@pytest.mark.parametrize(("case", "arrays"), cases("logits/dml"))
def test_dml_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    hyper = case["hyper"]
    if "net" not in hyper:
        pytest.skip("a case of another function")
    mine = f"logits{hyper['net']}"
    x = tensors(arrays, mine)
    others = [x[f"logits{k}"] for k in range(hyper["K"]) if k != hyper["net"]]
    guard = 1e-8 if hyper["variant"] == "tf" else 0.0
    divergence = sum(KF.dml(x[mine], other.detach(), guard=guard) for other in others)
    if hyper["variant"] == "torch":
        divergence = divergence / (hyper["K"] - 1)
    agrees(case, F.cross_entropy(x[mine], x["labels"]) + divergence, {mine: x[mine]})


@pytest.mark.parametrize(
    ("case", "arrays"), [c for c in cases("logits/mean_teacher") if "type" in c.values[0]["hyper"]]
)
def test_mean_teacher_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_logits")
    agrees(case, KF.mean_teacher(x["student_logits"], x["teacher_logits"], consistency=case["hyper"]["type"]), x)


def test_mean_teacher_ramp() -> None:
    (case, _) = next(c.values for c in cases("logits/mean_teacher") if c.values[0]["name"] == "ramp")
    method = kd_methods.create("mean_teacher", rampup=1.0)
    for epoch, expected in case["sigmoid_rampup"].items():
        progress = min(float(epoch) / case["hyper"]["consistency_rampup"], 1.0)
        assert method.distillation_weight(progress) == pytest.approx(expected, rel=1e-9)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("case", "arrays"), cases("features/byot"))
def test_byot_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    label = case["label"]
    names = [n for n in arrays if n.endswith(f"_{label}") and not n.startswith(("target", "label"))]
    x = tensors(arrays, *(n for n in names if arrays[n].dtype == np.float64))
    exits = [x[f"mid{k}_{label}"] for k in range(3)]
    features = [x[f"mid_fea{k}_{label}"] for k in range(3)]
    target = next(x[n] for n in x if x[n].dtype == torch.int64)
    hyper = case["hyper"]
    final = x[f"out_{label}"]
    hint = next(x[n] for n in x if "fin" in n and "fea" in n)
    kd = KF.byot(exits, final, features, hint, temperature=hyper["T"], alpha=hyper["alpha"], beta=hyper["beta"])
    ce = F.cross_entropy(final, target) + sum(F.cross_entropy(e, target) for e in exits)
    agrees(case, (1 - hyper["alpha"]) * ce + kd, x)


def test_byot_runs_each_exit_once_and_teaches_only_the_exits() -> None:
    stages = tuple(StageSpec(f"s{k}", "map", c, (8 >> k, 8 >> k), (k + 1) / 3) for k, c in enumerate((4, 6, 8)))
    spec = ModelSpec(stages, classes=5, input_shape=(1, 8, 8), embedding=8)
    method = kd_methods.create("byot")
    method.parts = method.bind(spec, spec, DataSpec(10, 5, (1, 8, 8)))
    logits = torch.randn(6, 5, requires_grad=True)
    features = [torch.randn(6, s.channels, *s.size, requires_grad=True) for s in stages]
    student = Signals(logits, features=features, embedding=torch.randn(6, 8))
    batch = Batch(torch.randint(5, (6,)), torch.arange(6))
    method.supervise(student, batch)  # type: ignore[attr-defined]
    lessons = method.lessons(student, {SELF: [student.detach()]}, batch)  # type: ignore[attr-defined]
    assert len(lessons) == 2
    assert lessons[0].student is student.views["exit0"]
    total = sum(method.loss(lesson.student, lesson.teacher, batch) for lesson in lessons)
    total.backward()
    assert logits.grad is None
    assert features[0].grad is not None
    assert features[2].grad is None


def test_plans() -> None:
    assert kd_methods.create("dml", peers=2).plan().peers == 2  # type: ignore[attr-defined]
    assert kd_methods.create("dml").plan().teachers == (PEERS,)  # type: ignore[attr-defined]
    assert kd_methods.create("mean_teacher").plan().keep == AVERAGE  # type: ignore[attr-defined]
    chain = kd_methods.create("takd", path="0.67-0.33").plan()  # type: ignore[attr-defined]
    assert [p.teachers for p in chain.pretrain] == [("teacher",), ("assistant1",)]
    assert chain.teachers == ("assistant2",)


def test_mutual_lessons_share_the_weight() -> None:
    method = kd_methods.create("dml", peers=2)
    student = Signals(torch.zeros(2, 3))
    batch = Batch(torch.zeros(2, dtype=torch.long), torch.arange(2))
    lessons = method.lessons(student, {PEERS: [Signals(torch.ones(2, 3)), Signals(torch.ones(2, 3))]}, batch)  # type: ignore[attr-defined]
    assert sum(lesson.weight for lesson in lessons) == pytest.approx(1.0)
