"""dml: the divergence, turns, and peers who teach as one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.strategy import PEERS, Lesson
from kdsearch.kd_methods.teaching.dml import together

from .logit_hazards import assert_finite, draw, hazards

BATCH = Batch(torch.zeros(4, dtype=torch.long), torch.arange(4))


def answers(count: int, dtype: torch.dtype = torch.float32) -> list[Signals]:
    found = []
    for k in range(count):
        generator = torch.Generator().manual_seed(k)
        logits, other, embedding = torch.randn(3, 4, 5, generator=generator, dtype=dtype) * 3
        found.append(Signals(logits, embedding=embedding, views={"cut": Signals(other)}))
    return found


def lessons(student: Signals, peers: list[Signals], **hyper: Any) -> tuple[Any, list[Lesson]]:
    method: Any = kd_methods.create("dml", **hyper)
    return method, method.lessons(student, {PEERS: peers}, BATCH)


@hazards
@pytest.mark.parametrize("guard", [0.0, 1e-8])
def test_hazards(guard: float, hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.dml(s, t, guard=guard), hazard)


def test_gradcheck() -> None:
    student, teacher, _ = draw(3, 4, dtype=torch.float64)
    student.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: KF.dml(s, teacher, temperature=2.0), (student,))


def test_turns_are_of_the_plan() -> None:
    default: Any = kd_methods.create("dml")
    alternating: Any = kd_methods.create("dml", turns=True, peers=2)
    assert not default.plan().turns
    assert alternating.plan() == replace(default.plan(), turns=True, peers=2)


def test_the_peers_mean_is_one_teacher() -> None:
    student, *peers = answers(4, torch.float64)
    method, (lesson,) = lessons(student, peers, teach="ensemble")
    assert lesson.student is student
    assert (lesson.weight, lesson.supplier) == (1.0, PEERS)
    mean = torch.stack([p.logits.softmax(1) for p in peers]).mean(0)
    torch.testing.assert_close(lesson.teacher.logits.softmax(1), mean)
    log_s = student.logits.log_softmax(1)
    expected = (mean * (mean.log() - log_s)).sum(1).mean()
    torch.testing.assert_close(method.loss(lesson.student, lesson.teacher, BATCH), expected)


def test_views_are_averaged_and_the_rest_is_the_first_peers() -> None:
    peers = answers(3)
    one = together(peers)
    assert one.embedding is peers[0].embedding
    cut = torch.stack([p.views["cut"].logits.softmax(1) for p in peers]).mean(0)
    torch.testing.assert_close(one.views["cut"].logits.softmax(1), cut)
    assert [p.views["cut"].logits is one.views["cut"].logits for p in peers] == [False] * 3


def test_a_single_peer_is_its_own_mean() -> None:
    student, other = answers(2)
    values: list[Tensor] = []
    for teach in ("each", "ensemble"):
        method, (lesson,) = lessons(student, [other], teach=teach)
        values.append(method.loss(lesson.student, lesson.teacher, BATCH))
    torch.testing.assert_close(*values)


def test_the_mean_teaches_no_more_than_each_does() -> None:
    """The divergence is convex in the teacher: that to the mean is at most the mean of those to each."""
    student, *peers = answers(4)
    totals = []
    for teach in ("each", "ensemble"):
        method, found = lessons(student, peers, teach=teach)
        totals.append(sum(x.weight * method.loss(x.student, x.teacher, BATCH) for x in found))
    assert totals[1] < totals[0]
