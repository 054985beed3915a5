"""sla: the layout of rotations and joint labels, both parts of the loss, and the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, DataSpec, ModelSpec, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.targets.sla import aggregate, rotations

DATA = DataSpec(100, 5, (3, 8, 8))


def draw(batch: int = 3, classes: int = 5, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Plain logits [B, C], joint logits [4B, 4C], labels."""
    generator = torch.Generator().manual_seed(0)
    plain = scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    joint = scale * torch.randn(4 * batch, 4 * classes, generator=generator, dtype=torch.float64)
    return plain, joint, torch.randint(classes, (batch,), generator=generator)


def student_spec(embedding: int | None = 6, shape: tuple[int, int, int] = (3, 8, 8)) -> ModelSpec:
    return ModelSpec(stages=(), classes=5, input_shape=shape, embedding=embedding)


def test_rotations_are_interleaved() -> None:
    images = torch.randn(2, 3, 4, 4)
    turned = rotations(images)
    assert turned.shape == (8, 3, 4, 4)
    torch.testing.assert_close(turned[0::4], images)
    torch.testing.assert_close(turned[5], torch.rot90(images[1], 1, (1, 2)))
    torch.testing.assert_close(turned[2], images[0].flip(1, 2))


def test_closed_form() -> None:
    """Cross-entropy over class · 4 + rotation, and the KL to the mean of each copy's own logits."""
    plain, joint, target = draw()
    labels = (target.unsqueeze(1) * 4 + torch.arange(4)).flatten()
    mean = torch.stack([torch.stack([joint[4 * b + k, k::4] for k in range(4)]).mean(0) for b in range(3)])
    torch.testing.assert_close(aggregate(joint, 3), mean)
    expected = F.cross_entropy(joint, labels)
    torch.testing.assert_close(KF.sla(plain, joint, target, distillation=0.0), expected)
    torch.testing.assert_close(
        KF.sla(plain, joint, target, temperature=2.0), expected + KF.kd(plain, mean, temperature=2.0)
    )
    summed = KF.sla(plain, joint, target, distillation=0.0, sum_copies=True)
    torch.testing.assert_close(summed, 4 * expected)


def test_mixed_labels() -> None:
    plain, joint, target = draw()
    hard = KF.sla(plain, joint, target, reduction="none")
    torch.testing.assert_close(KF.sla(plain, joint, F.one_hot(target, 5), reduction="none"), hard)
    other = (target + 1) % 5
    mixed = 0.7 * F.one_hot(target, 5) + 0.3 * F.one_hot(other, 5)
    rows = 0.7 * hard + 0.3 * KF.sla(plain, joint, other, reduction="none")
    torch.testing.assert_close(KF.sla(plain, joint, mixed, reduction="none"), rows)
    torch.testing.assert_close(KF.sla(plain, joint, mixed), rows.mean())


def test_self_distillation_does_not_reach_the_joint_head() -> None:
    plain, joint, target = draw()
    plain.requires_grad_(True)
    joint.requires_grad_(True)
    both = torch.autograd.grad(KF.sla(plain, joint, target), [plain, joint])
    alone = torch.autograd.grad(KF.sla(plain, joint, target, distillation=0.0), joint)
    torch.testing.assert_close(both[1], alone[0])
    assert both[0].abs().sum() > 0


def test_order_and_shift_do_not_matter() -> None:
    plain, joint, target = draw()
    expected = KF.sla(plain, joint, target)
    flipped = joint.view(3, 4, -1).flip(0).flatten(0, 1)
    torch.testing.assert_close(KF.sla(plain.flip(0), flipped, target.flip(0)), expected)
    torch.testing.assert_close(KF.sla(plain + 3, joint - 5, target), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "classes"), [(8, 10), (1, 10), (4, 2)])
def test_finite_at_scale_30(batch: int, classes: int, dtype: torch.dtype) -> None:
    plain, joint, target = draw(batch, classes, 30.0)
    plain, joint = plain.to(dtype).requires_grad_(True), joint.to(dtype).requires_grad_(True)
    value = KF.sla(plain, joint, target)
    assert torch.isfinite(value)
    for gradient in torch.autograd.grad(value, [plain, joint]):
        assert torch.isfinite(gradient).all()


def test_unknown_reduction() -> None:
    plain, joint, target = draw()
    with pytest.raises(ValueError, match="reduction must be"):
        KF.sla(plain, joint, target, reduction="sum")


def test_class() -> None:
    method: Any = kd_methods.create("sla")
    (view,) = method.views()
    assert (view.name, view.copies, view.teacher) == ("rotations", 4, False)
    assert view.apply(torch.randn(2, 3, 8, 8), None).shape == (8, 3, 8, 8)
    method.parts = method.bind(student_spec(), student_spec(), DATA)
    assert (method.parts.in_features, method.parts.out_features) == (6, 20)

    plain, _, target = draw()
    embedding = torch.randn(12, 6, requires_grad=True)
    turned = Signals(torch.zeros(12, 5), embedding=embedding)
    student = Signals(plain.float().requires_grad_(True), views={"rotations": turned})
    batch = Batch(target, torch.arange(3))
    value = method.loss(student, Signals(torch.zeros(3, 7)), batch)
    torch.testing.assert_close(value, KF.sla(student.logits, method.parts(embedding), target))
    value.backward()
    assert method.parts.weight.grad.abs().sum() > 0
    assert embedding.grad is not None
    network = torch.nn.Linear(2, 2)
    assert method.export(network) is network


def test_class_under_mixup() -> None:
    plain, _, target = draw()
    method: Any = kd_methods.create("sla")
    method.parts = method.bind(student_spec(), student_spec(), DATA).double()
    embedding = torch.randn(12, 6, dtype=torch.float64)
    student = Signals(plain, views={"rotations": Signals(torch.zeros(12, 5), embedding=embedding)})
    mixed = 0.5 * (F.one_hot(target, 5) + F.one_hot((target + 1) % 5, 5)).double()
    value = method.loss(student, Signals(plain), Batch(target, torch.arange(3), soft_target=mixed))
    torch.testing.assert_close(value, KF.sla(plain, method.parts(embedding), mixed))


def test_students_it_cannot_turn() -> None:
    method = kd_methods.create("sla")
    with pytest.raises(ValueError, match="needs a student with an embedding"):
        method.bind(student_spec(None), student_spec(), DATA)
    with pytest.raises(ValueError, match="square ones, not 8 x 6"):
        method.bind(student_spec(shape=(3, 8, 6)), student_spec(), DATA)
