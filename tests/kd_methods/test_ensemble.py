"""ensemble: equal lessons, the averaged answer, shares by training-free distances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Need, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.strategy import EVERY
from kdsearch.kd_methods.teaching._ensemble import mean_probabilities
from kdsearch.kd_methods.teaching.ensemble import shares

from .logit_hazards import HAZARDS, draw, hazards


def strategy(**hyper: Any) -> Any:
    return kd_methods.create("ensemble", **hyper)


def class_of(count: int, dtype: torch.dtype = torch.float64) -> tuple[Signals, dict[str, list[Signals]], Batch]:
    """A student, `count` teachers with a feature each, and their batch."""
    torch.manual_seed(count)
    names = ["teacher", *(f"teacher{k}" for k in range(2, count + 1))]
    teachers = {
        name: [Signals(torch.randn(4, 5, dtype=dtype), features=[torch.randn(4, 3 + k, 2, 2, dtype=dtype)])]
        for k, name in enumerate(names)
    }
    student = Signals(torch.randn(4, 5, dtype=dtype))
    return student, teachers, Batch(torch.arange(4), torch.arange(4))


def test_plan() -> None:
    assert strategy().plan().teachers == (EVERY,)
    assert not strategy().needs.teacher
    assert strategy(weighting="average").needs.teacher == {Need.LOGITS}
    assert strategy().weigh({"teacher": [1.0]}) is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_mean(count: int) -> None:
    student, teachers, batch = class_of(count)
    lessons = strategy().lessons(student, teachers, batch)
    assert [lesson.supplier for lesson in lessons] == list(teachers)
    assert [lesson.teacher for lesson in lessons] == [given for (given,) in teachers.values()]
    assert sum(lesson.weight for lesson in lessons) == pytest.approx(1.0)
    assert len({lesson.weight for lesson in lessons}) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_average_is_one_answer_with_each_teachers_features(count: int) -> None:
    student, teachers, batch = class_of(count)
    before = {name: given.logits.clone() for name, (given,) in teachers.items()}
    lessons = strategy(weighting="average").lessons(student, teachers, batch)
    ensemble = torch.stack([x.softmax(1) for x in before.values()]).mean(0)
    for lesson, (name, (given,)) in zip(lessons, teachers.items(), strict=True):
        assert lesson.supplier == name
        assert lesson.teacher.features[0] is given.features[0]
        torch.testing.assert_close(lesson.teacher.logits.softmax(1), ensemble)
        torch.testing.assert_close(given.logits, before[name])
    total = sum(lesson.weight * KF.kd(student.logits, lesson.teacher.logits) for lesson in lessons)
    torch.testing.assert_close(total, KF.kd(student.logits, ensemble.log()))


def test_distance_leaves_the_shares_to_the_run() -> None:
    student, teachers, batch = class_of(3)
    lessons = strategy(weighting="distance").lessons(student, teachers, batch)
    assert [lesson.weight for lesson in lessons] == [1.0] * 3
    assert [lesson.teacher for lesson in lessons] == [given for (given,) in teachers.values()]


def test_shares() -> None:
    assert shares([0.0, 0.0]) == [0.5, 0.5]
    assert shares([3.0, 3.0, 3.0]) == pytest.approx([1 / 3] * 3)
    assert shares([1.0, 3.0], sharpness=0.0) == [0.5, 0.5]
    near, far = shares([1.0, 3.0])
    assert near / far == pytest.approx(math.e)  # d / mean d = 0.5 and 1.5
    assert shares([1e-9, 3e-9]) == pytest.approx([near, far])
    expected = torch.softmax(-2.0 * torch.tensor([0.2, 0.5, 2.0], dtype=torch.float64) / 0.9, 0)
    assert shares([0.2, 0.5, 2.0], 2.0) == pytest.approx(expected.tolist())
    assert shares([0.0, 1.0], sharpness=1e6) == [1.0, 0.0]


def test_weigh_layer_by_layer() -> None:
    distances = {"teacher": [1.0, 4.0], "teacher2": [3.0, 4.0], "teacher3": [2.0, 0.0]}
    found = strategy(weighting="distance").weigh(distances)
    for layer in range(2):
        column = shares([d[layer] for d in distances.values()])
        assert [found[name][layer] for name in distances] == pytest.approx(column)
        assert sum(found[name][layer] for name in distances) == pytest.approx(1.0)
    assert found["teacher"][0] > found["teacher3"][0] > found["teacher2"][0]


@pytest.mark.parametrize(
    ("per_layer", "second"), [(False, [3.0, 4.0]), (True, [3.5]), (False, [3.5])], ids=["off", "unequal", "both"]
)
def test_weigh_over_all_layers(per_layer: bool, second: list[float]) -> None:
    distances = {"teacher": [1.0, 2.0], "teacher2": second}
    found = strategy(weighting="distance", per_layer=per_layer, sharpness=3.0).weigh(distances)
    one, two = shares([1.5, 3.5], 3.0)
    assert found == {"teacher": pytest.approx([one, one]), "teacher2": pytest.approx([two] * len(second))}


def test_a_teacher_without_distances_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher2 has none"):
        strategy(weighting="distance").weigh({"teacher": [1.0], "teacher2": []})


def test_one_teacher_has_everything() -> None:
    assert strategy(weighting="distance").weigh({"teacher": [0.3, 0.7]}) == {"teacher": [1.0, 1.0]}


@hazards
def test_the_averaged_answer_is_finite(hazard: str) -> None:
    student, teacher, _ = HAZARDS[hazard]()
    logits = mean_probabilities([teacher, teacher.flip(1)])
    assert torch.isfinite(logits).all()
    assert torch.isfinite(KF.kd(student, logits))
    totals = logits.float().softmax(1).sum(1)
    torch.testing.assert_close(totals, torch.ones_like(totals), rtol=1e-2, atol=1e-2)


def test_averaging_ignores_what_softmax_ignores() -> None:
    a, b, _ = draw(3, 4, dtype=torch.float64)
    plain = mean_probabilities([a, b])
    torch.testing.assert_close(mean_probabilities([a + 2, b - 1]), plain)
    torch.testing.assert_close(mean_probabilities([b, a]), plain)
    torch.testing.assert_close(mean_probabilities([a]), a.log_softmax(1))

    def whole(x: Tensor, y: Tensor) -> Tensor:
        return mean_probabilities([x, y])

    assert torch.autograd.gradcheck(whole, (a.requires_grad_(), b.requires_grad_()))
