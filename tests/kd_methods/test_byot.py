"""byot and msd: exits of every shape, and what is handed out with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch import kd_methods
from kdsearch.kd_methods import Signals, StageSpec
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.label_loss import label_loss
from kdsearch.kd_methods.probe import probe
from kdsearch.kd_methods.strategy import SELF
from kdsearch.kd_methods.tap import Tap
from kdsearch.kd_methods.teaching._exits import ExitingStudent

from .feature_signals import CLASSES, batch_of, data, map_stage, model, signals, token_stage
from .logit_hazards import assert_finite, draw, hazards

SHAPE = (3, 16, 16)
KEEPING = [{"keep_exits": True}, {"result": "ensemble"}]
both = pytest.mark.parametrize("name", ["byot", "msd"])


class Student(nn.Module):
    """Three stages, each of which but the first rectifies its input, in place where asked, and a linear end."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.first = self._stage(3, 4, 1)
        self.second = nn.Sequential(nn.ReLU(inplace), self._stage(4, 6, 2))
        self.third = nn.Sequential(nn.ReLU(inplace), self._stage(6, 8, 2))
        self.head = nn.Linear(8, CLASSES)
        self.ended = 0

    @staticmethod
    def _stage(channels: int, to: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, to, 3, stride=stride, padding=1), nn.BatchNorm2d(to))

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x)))
        self.ended += 1
        return self.head(x.mean((2, 3)))


def handed_out(name: str, student: nn.Module, **hyper: Any) -> tuple[Any, Any]:
    method: Any = kd_methods.create(name, **hyper)
    spec = probe(student, SHAPE)
    method.parts = method.bind(spec, spec, data())
    return method, method.export(student)


def images(size: int = 4) -> Tensor:
    return torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(0))


@hazards
def test_hazards(hazard: str) -> None:
    def loss(student: Tensor, teacher: Tensor, _: Tensor) -> Tensor:
        features = torch.ones(2, len(student), 3, dtype=student.dtype)
        return KF.byot([student], teacher, [features[0]], features[1])

    assert_finite(loss, hazard)


def test_gradcheck() -> None:
    exit_logits, final, _ = draw(3, 4, dtype=torch.float64)
    feature, deepest, _ = draw(3, 5, dtype=torch.float64, seed=1)
    exit_logits.requires_grad_(True)
    feature.requires_grad_(True)

    def loss(x: Tensor, f: Tensor) -> Tensor:
        return KF.byot([x], final, [f], deepest, beta=0.1)

    assert torch.autograd.gradcheck(loss, (exit_logits, feature))


STAGES = {
    "maps": (map_stage(4, 8), map_stage(6, 4), map_stage(8, 1)),
    "oblong": (map_stage(4, 8, 2), map_stage(6, 4, 2), map_stage(8, 2, 1)),
    "tokens": (token_stage(8, 4), token_stage(8, 4), token_stage(8, 4)),
    "maps, then tokens": (map_stage(4, 8), token_stage(8, 4), token_stage(8, 4)),
}


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("stages", list(STAGES.values()), ids=list(STAGES))
def test_a_step(stages: tuple[StageSpec, ...], size: int) -> None:
    torch.manual_seed(0)
    method: Any = kd_methods.create("byot", alpha=0.3)
    spec = model(stages)
    method.parts = method.bind(spec, spec, data())
    student, batch = signals(spec, size, 1, trained=True), batch_of(size)
    supervised = method.supervise(student, batch)
    lessons = method.lessons(student, {SELF: [student.detach()]}, batch)
    exits = method.answers(student)
    assert [lesson.student for lesson in lessons] == exits
    expected = sum(F.cross_entropy(e.logits, batch.target) for e in exits)
    torch.testing.assert_close(supervised, 0.7 * expected)
    assert method.label_weight() == 0.7
    total = sum(x.weight * method.loss(x.student, x.teacher, batch) for x in lessons)
    pooled = [e.embedding for e in exits]
    whole = KF.byot([e.logits for e in exits], student.logits, pooled, student.embedding, alpha=0.3)
    torch.testing.assert_close(total, whole)
    (supervised + total).backward()
    assert student.logits.grad is None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parts.parameters())


@both
def test_the_student_alone_is_handed_out_unless_asked(name: str) -> None:
    student = Student()
    _, out = handed_out(name, student)
    assert out is student


@both
@pytest.mark.parametrize("hyper", KEEPING, ids=["kept", "ensemble"])
def test_exits_in_the_network_are_those_of_training(name: str, hyper: dict[str, Any]) -> None:
    torch.manual_seed(0)
    student = Student()
    method, out = handed_out(name, student, **hyper)
    assert isinstance(out, ExitingStudent)
    out.eval()
    x = images()
    with Tap(student, probe(student, SHAPE), method.needs.student, stages=[0, 1, 2]) as tap:
        seen = tap(x)
    trained = [answer.logits for answer in method.answers(seen)]
    found = out.exits(x)
    assert len(found) == 3
    for a, b in zip(found, [*trained, seen.logits], strict=True):
        torch.testing.assert_close(a, b)
    mean = torch.stack([logits.softmax(1) for logits in found]).mean(0)
    expected = mean if hyper.get("result") == "ensemble" else found[-1].softmax(1)
    torch.testing.assert_close(out(x).softmax(1), expected)


@both
def test_what_later_layers_do_in_place_reaches_no_exit(name: str) -> None:
    torch.manual_seed(0)
    _, out = handed_out(name, Student(), keep_exits=True)
    _, inplace = handed_out(name, Student(inplace=True), keep_exits=True)
    inplace.load_state_dict(out.state_dict())
    torch.testing.assert_close(inplace.eval().exits(images()), out.eval().exits(images()))


@both
def test_it_is_built_again_from_its_state(name: str) -> None:
    """By bind and export on a fresh student, as a file is read: the state alone brings everything back."""
    torch.manual_seed(0)
    _, out = handed_out(name, Student(), result="ensemble")
    for module in out.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
    _, again = handed_out(name, Student(), result="ensemble")
    again.load_state_dict(out.state_dict())
    torch.testing.assert_close(again.eval()(images()), out.eval()(images()))


@both
def test_it_shares_everything_and_counts_it(name: str) -> None:
    student = Student()
    method, out = handed_out(name, student, keep_exits=True)
    shared = {id(p) for module in (student, method.parts) for p in module.parameters()}
    assert {id(p) for p in out.parameters()} == shared
    count = sum(p.numel() for p in out.parameters())
    assert count == sum(p.numel() for module in (student, method.parts) for p in module.parameters())


@both
def test_an_early_exit_spares_what_lies_behind_it(name: str) -> None:
    student = Student()
    _, out = handed_out(name, student, keep_exits=True)
    out.eval()
    x = images()
    expected, before = out.exits(x), student.ended
    for k in range(2):
        torch.testing.assert_close(out.leave_at(x, k), expected[k])
    assert student.ended == before
    assert not student.first._forward_hooks
    assert not student.second._forward_hooks


class Around(nn.Module):
    """What another method hands out: it shows the student two copies of each image."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: Tensor) -> Tensor:
        return self.student(torch.cat([x, x.flip(3)])).unflatten(0, (2, -1)).mean(0)


def test_exits_within_what_another_method_hands_out() -> None:
    student = Student()
    method, bare = handed_out("byot", student, result="ensemble")
    out = method.export(Around(student))
    bare.eval()
    out.eval()
    x = images()
    *exits, final = out.exits(x)
    torch.testing.assert_close(exits, bare.exits(x)[:-1])
    torch.testing.assert_close(final, out.student(x))
    assert out(x).shape == (4, CLASSES)
    torch.testing.assert_close(out.leave_at(x, 0), exits[0])
    with pytest.raises(ValueError, match="has no stage"):
        method.export(nn.Linear(2, 2))


def test_a_student_without_stages_or_embedding_has_no_exits() -> None:
    for spec in (model([map_stage(4, 8)]), model([map_stage(4, 8), map_stage(6, 4)], None)):
        with pytest.raises(ValueError, match="two stages or more"):
            kd_methods.create("byot").bind(spec, spec, data())


@both
def test_a_sample_without_a_label_teaches_no_exit(name: str) -> None:
    method: Any = kd_methods.create(name)
    spec = model(STAGES["maps"])
    method.parts = method.bind(spec, spec, data())
    student, batch = signals(spec, 4, 1, trained=True), replace(batch_of(4), partly=True)
    batch.target = torch.tensor([0, -100, 2, -100])
    exits = method.answers(student)
    factor = 1 - method.alpha if name == "byot" else 1.0
    supervised = method.supervise(student, batch)
    torch.testing.assert_close(supervised, factor * sum(label_loss(e.logits, batch) for e in exits))
    for gradient in torch.autograd.grad(supervised, [e.logits for e in exits]):
        assert gradient[::2].all()
        assert not gradient[1::2].any()
    batch.target = torch.full((4,), -100)
    assert method.supervise(student, batch) == 0


def test_a_logit_term_takes_every_exit() -> None:
    method: Any = kd_methods.create("byot")
    spec = model(STAGES["maps"])
    method.parts = method.bind(spec, spec, data())
    student, batch = signals(spec, 6, 1, trained=True), batch_of(6)
    lessons = method.lessons(student, {SELF: [student.detach()]}, batch)
    values = [KF.dist(x.student.logits, x.teacher.logits) for x in lessons]
    assert isinstance(lessons[0].student, Signals)
    assert torch.isfinite(torch.stack(values)).all()
