"""orc: objectives, roles, the moving average behind them, and what the pivot is trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.strategy import PEERS, PIVOT, Lesson, peer
from kdsearch.kd_methods.teaching.orc import feedback, mix_in, roles

from .feature_signals import data, model
from .logit_hazards import assert_finite, draw, hazards

CLASSES = 4


def instances(**hyper: Any) -> list[Any]:
    """One bound strategy for each learner."""
    count = 1 + int(kd_methods.create("orc", **hyper).hyper["peers"])
    found = []
    for k in range(count):
        method: Any = kd_methods.create("orc", **hyper)
        method.place = (k, count)
        method.parts = method.bind(model([]), model([]), data())
        found.append(method)
    return found


def step(methods: list[Any], answers: list[Signals], pivot: Signals, batch: Batch) -> list[list[Lesson]]:
    """Every learner's lessons, as a run asks for them."""
    out = []
    for k, method in enumerate(methods):
        teachers = {peer(j): [other.detach()] for j, other in enumerate(answers) if j != k}
        out.append(method.lessons(answers[k], {**teachers, PIVOT: [pivot]}, batch))
    return out


def answers_with_errors(scales: list[float], target: Tensor) -> list[Signals]:
    """Learners of which a larger scale means a smaller cross-entropy."""
    return [Signals((scale * F.one_hot(target, CLASSES)).float().requires_grad_()) for scale in scales]


def teaching(lessons: list[Lesson]) -> dict[str, float]:
    return {lesson.supplier: float(lesson.weight) for lesson in lessons}


def test_plan() -> None:
    plan = instances()[0].plan()
    assert plan.teachers == (PEERS, PIVOT)
    assert (plan.peers, plan.pivot) == (2, 0.1)
    assert plan.peer_sizes == pytest.approx((1 / 3, 2 / 3))
    assert kd_methods.create("orc", peers=1).plan().peer_sizes == (0.5,)  # type: ignore[attr-defined]


def test_roles() -> None:
    found = roles(torch.tensor([2.0, 0.5, 1.0]))
    assert found.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert roles(torch.tensor([1.0, 1.0])).tolist() == [[0, 0], [1, 0]]  # a tie has one best as well
    for seed in range(5):
        some = roles(torch.rand(4, generator=torch.Generator().manual_seed(seed)))
        assert sorted(some.sum(1).tolist()) == [0, 1, 1, 1], "one is promoted, all others learn from it"
        assert some.diagonal().sum() == 0


def test_the_best_has_the_pivot_alone_and_teaches_the_others() -> None:
    target = torch.arange(8) % CLASSES
    batch, pivot = Batch(target, torch.arange(8)), Signals(torch.randn(8, CLASSES))
    answers = answers_with_errors([1.0, 3.0, 2.0], target)
    methods = instances()
    first, best, third = step(methods, answers, pivot, batch)
    assert teaching(first) == {PIVOT: 1.0, peer(1): 1.0, peer(2): 0.0}
    assert teaching(best) == {PIVOT: 1.0, peer(0): 0.0, peer(2): 0.0}
    assert teaching(third) == {PIVOT: 1.0, peer(0): 0.0, peer(1): 1.0}
    assert best[0].teacher is pivot
    assert isinstance(best[0].weight, float), "a sum that starts with it asks no device for a number"


@pytest.mark.parametrize("learner", [0, 1, 2])
def test_lessons_make_the_published_objective(learner: int) -> None:
    torch.manual_seed(learner)
    target = torch.randint(CLASSES, (8,))
    batch, pivot = Batch(target, torch.arange(8)), Signals(torch.randn(8, CLASSES))
    answers = [Signals(torch.randn(8, CLASSES, requires_grad=True)) for _ in range(3)]
    methods = instances()
    lessons = step(methods, answers, pivot, batch)[learner]
    method, own = methods[learner], answers[learner]
    total = method.label_weight() * F.cross_entropy(own.logits, target)
    total = total + sum(lesson.weight * method.loss(own, lesson.teacher, batch) for lesson in lessons)
    errors = torch.stack([F.cross_entropy(a.logits, target) for a in answers])
    best = int(errors.argmin())
    group = [] if best == learner else [answers[best].logits.detach()]
    torch.testing.assert_close(total, KF.orc(own.logits, [pivot.logits, *group], target))
    (gradient,) = torch.autograd.grad(total, own.logits)
    assert gradient.abs().sum() > 0, "whatever its role, it learns"
    others = [a.logits for k, a in enumerate(answers) if k != learner]
    assert torch.autograd.grad(lessons[0].teacher.logits.sum() + own.logits.sum(), others, allow_unused=True) == (
        None,
        None,
    )


def test_all_instances_agree_and_the_average_outlasts_a_noisy_batch() -> None:
    target = torch.arange(8) % CLASSES
    batch, pivot = Batch(target, torch.arange(8)), Signals(torch.randn(8, CLASSES))
    methods = instances(decay=0.9)
    usual, odd = answers_with_errors([1.0, 3.0, 2.0], target), answers_with_errors([4.0, 3.0, 2.0], target)
    for _ in range(20):
        step(methods, usual, pivot, batch)
    first, second, _ = step(methods, odd, pivot, batch)
    assert teaching(first)[peer(1)] == 1.0, "one batch does not change the roles"
    assert teaching(second)[peer(0)] == 0.0
    for method in methods[1:]:
        assert torch.equal(method.parts.average, methods[0].parts.average)
    at_once = instances(decay=0.0)
    step(at_once, usual, pivot, batch)
    assert teaching(step(at_once, odd, pivot, batch)[1])[peer(0)] == 1.0
    errors = torch.stack([F.cross_entropy(a.logits, target) for a in odd])
    torch.testing.assert_close(at_once[0].parts.average, errors.detach())


def test_the_ranking_survives_a_resume() -> None:
    target = torch.arange(8) % CLASSES
    batch, pivot = Batch(target, torch.arange(8)), Signals(torch.randn(8, CLASSES))
    methods = instances()
    step(methods, answers_with_errors([1.0, 3.0, 2.0], target), pivot, batch)
    fresh = instances()[0]
    fresh.parts.load_state_dict(methods[0].parts.state_dict())
    assert torch.equal(fresh.parts.average, methods[0].parts.average)
    assert fresh.parts.average.abs().sum() > 0
    assert not list(fresh.parts.parameters())


def test_soft_labels_rank_too() -> None:
    target = torch.arange(8) % CLASSES
    soft = F.one_hot(target.flip(0), CLASSES).float()
    batch = Batch(target, torch.arange(8), soft_target=soft)
    answers = answers_with_errors([3.0, 0.0], target)
    first, _ = step(instances(peers=1), answers, Signals(torch.randn(8, CLASSES)), batch)
    assert teaching(first)[peer(1)] == 1.0, "by the mixed labels, the learner that is sure of others is the worse one"


def test_feedback_is_what_most_get_wrong() -> None:
    target = torch.tensor([0, 0, 0, 0])
    right, wrong = F.one_hot(torch.tensor(0), 3).float(), F.one_hot(torch.tensor(1), 3).float()
    answers = [
        torch.stack([right, wrong, wrong, wrong]),
        torch.stack([right, right, wrong, wrong]),
        torch.stack([right, right, right, wrong]),
    ]
    assert feedback(answers, target).tolist() == [False, False, True, True]
    assert feedback(answers[:2], target).tolist() == [False, False, True, True]  # half is not more than half


def test_intensive_mixes_feedback_into_the_batch() -> None:
    torch.manual_seed(0)
    images, target = torch.randn(6, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0, 1])
    chosen = torch.tensor([False, True, False, False, True, False])
    labels = F.one_hot(target, CLASSES).float()
    mixed, soft, share = mix_in(images, labels, chosen, torch.Generator().manual_seed(2))
    assert 0 <= share <= 1
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    back = (mixed - share * images) / (1 - share)
    for row, label in zip(back, (soft - share * labels) / (1 - share), strict=True):
        near = [k for k in range(6) if torch.allclose(row, images[k], atol=1e-4)]
        assert near
        assert chosen[near[0]], "only feedback samples are mixed in"
        torch.testing.assert_close(label, labels[near[0]], atol=1e-4, rtol=0)


def test_mixture_is_uniform_and_follows_the_generator() -> None:
    images, labels, chosen = torch.randn(2, 1), torch.eye(2), torch.tensor([True, False])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([mix_in(images, labels, chosen, generator)[2] for _ in range(500)])
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(drawn.var()) == pytest.approx(1 / 12, abs=0.01)
    twice = [mix_in(images, labels, chosen, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))


@pytest.mark.parametrize("mixed", [False, True])
def test_where_nobody_errs_the_pivot_sees_the_batch(mixed: bool) -> None:
    method = instances()[0]
    target = torch.arange(8) % CLASSES
    soft = torch.softmax(torch.randn(8, CLASSES), 1) if mixed else None
    batch = Batch(target, torch.arange(8), soft_target=soft, generator=torch.Generator().manual_seed(0))
    images = torch.randn(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    answers = [answer.logits for answer in answers_with_errors([1.0, 2.0, 3.0], target)]
    shown, labels = method.intensive(images, answers, batch)
    assert torch.equal(shown, images)
    assert torch.equal(labels, F.one_hot(target, CLASSES).float() if soft is None else soft)
    # By soft labels then intensive teaching is plain cross-entropy.
    logits = torch.randn(8, CLASSES)
    plain = F.cross_entropy(logits, target if soft is None else soft)
    torch.testing.assert_close(F.cross_entropy(logits, labels), plain)


def test_intensive_shows_errors() -> None:
    method = instances()[0]
    target = torch.arange(8) % CLASSES
    wrong = (target + 1) % CLASSES
    said = torch.where(torch.arange(8) < 2, wrong, target)
    answers = [F.one_hot(said, CLASSES).float() for _ in range(3)]
    images = torch.arange(8.0)[:, None].expand(8, 2).contiguous()
    batch = Batch(target, torch.arange(8), generator=torch.Generator().manual_seed(1))
    shown, labels = method.intensive(images, answers, batch)
    assert shown.shape == images.shape
    assert labels.shape == (8, CLASSES)
    assert (shown[2:] < images[2:]).all(), "samples 0 and 1, which all get wrong, pull the others towards them"


def test_nothing_waits_for_the_device() -> None:
    """Tensors without values: whoever asks for one gets an error."""
    method = instances()[0]
    method.parts.to("meta")
    logits, target = torch.randn(4, 8, CLASSES, device="meta"), torch.zeros(8, dtype=torch.long, device="meta")
    batch = Batch(target, target)
    teachers = {PIVOT: [Signals(logits[3])], peer(1): [Signals(logits[1])], peer(2): [Signals(logits[2])]}
    lessons = method.lessons(Signals(logits[0]), teachers, batch)
    total = sum(lesson.weight * method.loss(lesson.student, lesson.teacher, batch) for lesson in lessons)
    assert isinstance(total, Tensor)
    assert total.shape == ()
    images, labels = method.intensive(torch.randn(8, 3, 4, 4, device="meta"), list(logits[:3]), batch)
    assert images.shape == (8, 3, 4, 4)
    assert labels.shape == (8, CLASSES)


@hazards
def test_hazards(hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.orc(s, [t, t.flip(1)], y), hazard)


def test_gradcheck() -> None:
    student, teacher, target = draw(3, 4, dtype=torch.float64)
    other = draw(3, 4, dtype=torch.float64, seed=1)[0]
    student.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: KF.orc(s, [teacher, other], target), (student,))


def test_properties() -> None:
    student, teacher, target = draw(4, 5, dtype=torch.float64)
    ce = F.cross_entropy(student, target)
    torch.testing.assert_close(KF.orc(student, [student, student], target), 0.1 * ce)
    torch.testing.assert_close(KF.orc(student, [teacher], target, beta=0.0), ce)
    expected = 0.1 * ce + 0.9 * KF.kd(student, teacher, temperature=4.0)
    torch.testing.assert_close(KF.orc(student, [teacher], target), expected)
    soft = F.one_hot(target, 5).double()
    torch.testing.assert_close(KF.orc(student, [teacher], soft), expected)
