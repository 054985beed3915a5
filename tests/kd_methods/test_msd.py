"""msd: who teaches whom, the annealed feature term, the branches, and a step taken together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Need, Signals, StageSpec
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.strategy import SELF, Lesson
from kdsearch.kd_methods.tails import Block
from kdsearch.kd_methods.teaching._exits import branches
from kdsearch.kd_methods.teaching.msd import annealed, hint, pairings

from .feature_signals import CLASSES, batch_of, data, map_stage, model, signals, token_stage
from .logit_hazards import assert_finite, draw, hazards

MAPS = (map_stage(4, 8), map_stage(6, 4), map_stage(8, 2), map_stage(10, 1))
TOKENS = (token_stage(12, 4), token_stage(12, 4), token_stage(12, 4))
MIXED = (map_stage(4, 8), map_stage(6, 4), token_stage(12, 2))
UNEQUAL = (token_stage(8, 4), token_stage(12, 2))
OBLONG = (map_stage(4, 8, 4), map_stage(6, 3, 4), map_stage(8, 3, 2))

SHAPES = {"maps": MAPS, "tokens": TOKENS, "maps, then tokens": MIXED, "unequal tokens": UNEQUAL, "oblong": OBLONG}
shapes = pytest.mark.parametrize("stages", list(SHAPES.values()), ids=list(SHAPES))


def classifiers(count: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, 4, 5, generator=generator, dtype=dtype) * 2
    features = torch.randn(count, 4, 3, 2, 2, generator=generator, dtype=dtype)
    return [x.clone().requires_grad_() for x in logits], [x.clone().requires_grad_() for x in features]


def begun(stages: tuple[StageSpec, ...], size: int = 6, **hyper: Any) -> tuple[Any, Signals]:
    torch.manual_seed(0)
    method: Any = kd_methods.create("msd", **hyper)
    spec = model(stages)
    method.parts = method.bind(spec, spec, data())
    return method, signals(spec, size, 1, trained=True)


def lessons(method: Any, student: Signals, batch: Batch) -> list[Lesson]:
    return method.lessons(student, {SELF: [student.detach()]}, batch)


def test_by_hand() -> None:
    logits, features = classifiers(3)
    high = 3.0
    p = [(x / high).softmax(1) for x in logits]

    def divergence(teacher: int, learner: int) -> Tensor:
        return high**2 * (p[teacher] * (p[teacher].log() - p[learner].log())).sum(1).mean()

    halves = [0.5 * (divergence(b, a) + divergence(c, a)) for a, b, c in ((0, 1, 2), (1, 0, 2), (2, 0, 1))]
    gaps = [((f - features[-1]) ** 2).mean() for f in features[:-1]]
    expected = 0.7 * sum(halves) + 0.2 * sum(gaps)
    torch.testing.assert_close(KF.msd(logits, features, alpha=0.7, beta=0.2), expected)
    deeper = divergence(1, 0) + divergence(2, 0) + divergence(2, 1)
    value = KF.msd(logits, features, alpha=0.7, beta=0.2, pairs="deeper")
    torch.testing.assert_close(value, 0.7 * deeper + 0.2 * sum(gaps))


@hazards
def test_hazards(hazard: str) -> None:
    def loss(student: Tensor, teacher: Tensor, _: Tensor) -> Tensor:
        features = torch.ones(2, len(student), 3, 2, 2, dtype=student.dtype)
        return KF.msd([student, teacher], list(features))

    assert_finite(loss, hazard)


def test_gradcheck() -> None:
    """Along the learner's side: the teachers' side is blocked, which finite differences would not see."""
    logits, features = classifiers(2)
    teacher, deepest = logits[1].detach(), features[1].detach()

    def loss(x: Tensor, f: Tensor) -> Tensor:
        return KF.msd([x, teacher], [f, deepest], pairs="deeper")

    assert torch.autograd.gradcheck(loss, (logits[0], features[0]))


def test_equal_classifiers_have_nothing_to_learn_and_one_has_nobody() -> None:
    logits, features = classifiers(1)
    assert KF.msd(logits * 3, features * 3).abs() < 1e-12
    assert KF.msd(logits, features) == 0


def test_every_teacher_is_a_constant() -> None:
    logits, features = classifiers(3)
    grads = torch.autograd.grad(KF.msd(logits, features, pairs="deeper"), logits, allow_unused=True)
    assert grads[0] is not None
    assert grads[1] is not None
    assert grads[2] is None or not grads[2].any(), "the deepest one teaches and does not learn"
    grads = torch.autograd.grad(KF.msd(logits, features), [*logits, features[-1]], allow_unused=True)
    assert all(g is not None and g.any() for g in grads[:3]), "all learn from all"
    assert grads[3] is None
    high = 3.0
    expected = high * ((logits[0] / high).softmax(1) - 0.5 * sum((x / high).softmax(1) for x in logits[1:])) / 4
    torch.testing.assert_close(grads[0], expected.detach())


def test_pairings() -> None:
    for count in (2, 3, 5):
        for k in range(count):
            assert sum(share for learner, _, share in pairings(count) if learner == k) == pytest.approx(1.0)
    assert [(a, b) for a, b, _ in pairings(3, "deeper")] == [(0, 1), (0, 2), (1, 2)]
    with pytest.raises(ValueError, match="pairs must be"):
        pairings(3, "last")


def test_annealing() -> None:
    assert annealed(0.05, 0.0) == 0.05
    assert annealed(0.05, 0.5) == pytest.approx(0.025)
    assert annealed(0.05, 1.0) == 0.0
    values = [annealed(1.0, k / 10) for k in range(11)]
    assert values == sorted(values, reverse=True)


def test_one_block_for_every_stage_that_follows() -> None:
    """The published augmentation: 3, 2 and 1 further blocks, in the widths and at the strides of the trunk."""
    parts = branches(model(MAPS))
    assert [len(part.tail.blocks) for part in parts] == [3, 2, 1]  # type: ignore[union-attr, arg-type]
    first: Any = parts[0]
    assert all(isinstance(block, Block) for block in first.tail.blocks)
    x = torch.randn(2, 4, 8, 8)
    shapes = []
    for block in first.tail.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(s.channels, *s.size) for s in MAPS[1:]]


@shapes
def test_a_step(stages: tuple[StageSpec, ...]) -> None:
    """Lessons and labels of a step add up to the published objective, for every kind of stages."""
    method, student = begun(stages, alpha=0.6, beta=0.3)
    batch = batch_of(6, progress=0.25)
    runs: list[int] = []
    for part in method.parts:
        part.register_forward_hook(lambda *_: runs.append(1))
    supervised = method.supervise(student, batch)
    found = lessons(method, student, batch)
    total = sum(x.weight * method.loss(x.student, x.teacher, batch) for x in found)
    count = len(stages)
    assert len(runs) == count - 1, "each exit runs once in a step"
    assert len(found) == count * (count - 1)
    exits = method.answers(student)
    deepest = found[count - 2].teacher.map
    assert deepest is not None
    assert all(e.map.shape[1] == deepest.shape[1] for e in exits)
    logits = [*(e.logits for e in exits), student.logits]
    features = [*(e.map for e in exits), deepest]
    expected = KF.msd(logits, features, alpha=0.6, beta=annealed(0.3, 0.25))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(supervised, sum(F.cross_entropy(e.logits, batch.target) for e in exits))
    total.backward()
    assert student.features[-1].grad is None, "the deepest feature is a target alone"
    assert student.features[0].grad is not None
    assert student.logits.grad is not None, "the deepest classifier learns from the exits"
    assert all(p.grad is not None for part in method.parts for p in part.tail.blocks.parameters())


def test_deeper_pairs_in_a_step() -> None:
    method, student = begun(MAPS, pairs="deeper")
    batch = batch_of(6)
    total = sum(x.weight * method.loss(x.student, x.teacher, batch) for x in lessons(method, student, batch))
    exits = method.answers(student)
    logits = [*(e.logits for e in exits), student.logits]
    features = [*(e.map for e in exits), student.features[-1]]
    torch.testing.assert_close(total, KF.msd(logits, features, pairs="deeper"))
    (gradient,) = torch.autograd.grad(total, student.logits, allow_unused=True, materialize_grads=True)
    assert not gradient.any()


def test_at_the_end_of_training_features_are_free() -> None:
    method, student = begun(MAPS, alpha=0.0)
    start, end = batch_of(6, progress=0.0), batch_of(6, progress=1.0)
    values = [
        sum(x.weight * method.loss(x.student, x.teacher, batch) for x in lessons(method, student, batch))
        for batch in (start, end)
    ]
    assert values[0] > 0
    assert values[1] == 0


def test_mixed_labels_and_a_batch_of_one() -> None:
    method, student = begun(MAPS, size=1)
    method.parts.train()
    soft = torch.softmax(torch.randn(1, CLASSES), 1)
    batch = replace(batch_of(1), soft_target=soft)
    supervised = method.supervise(student, batch)
    expected = sum(F.cross_entropy(e.logits, soft) for e in method.answers(student))
    torch.testing.assert_close(supervised, expected)
    values = [method.loss(x.student, x.teacher, batch) for x in lessons(method, student, batch)]
    assert all(torch.isfinite(value) for value in values)


def test_half_precision_and_channels_last() -> None:
    method, student = begun(MAPS)
    method.parts.eval()
    reference = [e.logits for e in method.answers(student)]
    changed = [f.detach().to(memory_format=torch.channels_last) for f in student.features]
    same = method.answers(Signals(student.logits, features=changed))
    torch.testing.assert_close([e.logits for e in same], reference)
    halves = method.answers(Signals(student.logits, features=[f.bfloat16() for f in changed]))
    for half, whole in zip(halves, reference, strict=True):
        torch.testing.assert_close(half.logits.float(), whole, atol=0.1, rtol=0.1)


def test_hint_at_the_smaller_size() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(hint(a, b), F.mse_loss(F.avg_pool2d(a, 2), b))


def test_another_loss_takes_every_pair() -> None:
    """A logit term of the recipe: the shares of each learner's lessons add up to one."""
    method, student = begun(MAPS)
    found = lessons(method, student, batch_of(6))
    assert method.own_objective
    assert method.supplies == {Need.LOGITS}
    values = [x.weight * KF.dkd(x.student.logits, x.teacher.logits, batch_of(6).target) for x in found]
    assert torch.isfinite(torch.stack(values)).all()
    assert sum(x.weight for x in found) == pytest.approx(len(MAPS))
    assert math.isclose(method.label_weight(), 1.0)


def test_a_single_stage_has_no_exits() -> None:
    spec = model(MAPS[:1])
    with pytest.raises(ValueError, match="two stages or more"):
        kd_methods.create("msd").bind(spec, spec, data())


def test_two_classifiers_are_a_teacher_and_a_student() -> None:
    student, teacher, _ = draw(4, 5)
    features = list(torch.zeros(2, 4, 2, 1, 1))
    value = KF.msd([student, teacher], features, pairs="deeper")
    torch.testing.assert_close(value, KF.kd(student, teacher, temperature=3.0))
