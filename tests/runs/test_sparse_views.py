"""Masked views in a training: transformers run on the visible patches, and nothing of the batch is kept for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdsearch.kd_methods import Need
from kdsearch.runs.data import Data
from kdsearch.runs.distil import _prepare, distil
from kdsearch.runs.fidelity import FULL
from kdsearch.runs.offline import CACHED
from kdsearch.runs.settings import Seeds, Settings
from kdsearch.runs.training import Training
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe


def prepared(data: Data, teacher: TeacherModel, folder: Path, **slots: Any) -> Training:
    world = World(data, teacher, Settings(epochs=2, views=2, evaluations=1), folder / "cache")
    return _prepare(Recipe.from_dict(slots), world, Seeds.search(0), FULL, None, None)[0]


def lengths(model: Any, into: list[tuple[int, int]]) -> None:
    """Notes the [rows, tokens] that enter the first block from now on."""
    model.blocks[0].register_forward_pre_hook(lambda module, args: into.append(tuple(args[0].shape[:2])))


def one_step(training: Training) -> dict[str, Tensor]:
    step = training.data.view(training.ids[:8], 0, training.views)
    terms = training.objective.terms
    (losses,) = training._losses(step, [terms], 0.0, labels=True, own=True)
    assert losses.distillation is not None
    (losses.task + losses.distillation).backward()
    return losses.values


def test_student_and_teacher_see_the_same_few_patches(digits: Data, transformer: TeacherModel, tmp_path: Path) -> None:
    side, patch = digits.input_shape[1], 2
    student = {"family": "vit", "patch": patch, "depth": 4, "dim": 48}
    training = prepared(digits, transformer, tmp_path, student=student, tokens="dmae")
    grid = transformer.spec.stages[0].size
    ours: list[tuple[int, int]] = []
    theirs: list[tuple[int, int]] = []
    lengths(training.student.network.module, ours)
    handle = transformer.network.module.get_submodule("blocks.0").register_forward_pre_hook(
        lambda module, args: theirs.append(tuple(args[0].shape[:2]))
    )
    one_step(training)
    handle.remove()
    cells = round(0.25 * grid[0] * grid[1])
    patches = cells * (side // patch) ** 2 // (grid[0] * grid[1])
    assert ours == [(8, 1 + (side // patch) ** 2), (8, 1 + patches)]
    assert theirs == [(8, 1 + cells)]  # and the batch itself is not shown to it
    found = [p.grad for p in training.student.network.module.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in found)


def test_only_what_the_batch_needs_is_stored(digits: Data, transformer: TeacherModel, tmp_path: Path) -> None:
    (fixed,) = prepared(digits, transformer, tmp_path, student="vit", tokens="dmae").fixed.values()
    assert (fixed.supply.how, fixed.stores, fixed.needs) == ({}, {}, {Need.FEATURES})
    assert fixed.supply.describe() == "asked beside the batch alone"
    (fixed,) = prepared(digits, transformer, tmp_path, student="vit", tokens="dmae", logits="kd").fixed.values()
    assert fixed.supply.how == {Need.LOGITS: CACHED}
    both = prepared(digits, transformer, tmp_path, student="vit", tokens="dmae", features="fitnets")
    (fixed,) = both.fixed.values()
    assert fixed.supply.how == {Need.FEATURES: CACHED}


@pytest.mark.parametrize("teaching", ["teacher", "mean_teacher", "dml"])
def test_a_student_learns_from_few_patches(
    digits: Data, transformer: TeacherModel, tmp_path: Path, teaching: str
) -> None:
    world = World(digits, transformer, Settings(epochs=2, views=2, evaluations=1), tmp_path / "cache")
    student = {"family": "vit", "patch": 2, "depth": 4, "dim": 48}
    recipe = Recipe.from_dict({"student": student, "tokens": "dmae", "logits": "kd", "teaching": teaching})
    trained = distil(recipe, world, Seeds.search(0)).trained
    dmae = trained.loss_curve["dmae"]
    assert all(torch.isfinite(torch.tensor(dmae)))
    hooked = [m for m in trained.module.modules() if isinstance(m, nn.Identity) and m._forward_hooks]
    assert not hooked


@pytest.mark.parametrize("student", ["vit", "resnet"])
def test_the_masked_view_of_makd_is_kept_to_what_is_visible(
    digits: Data, teacher: TeacherModel, tmp_path: Path, student: str
) -> None:
    training = prepared(digits, teacher, tmp_path, student=student, features="makd")
    module = training.student.network.module
    rows: list[tuple[int, int]] = []
    zeros: list[tuple[int, float]] = []
    if student == "vit":
        lengths(module, rows)
    else:
        last = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)][1]
        last.register_forward_hook(
            lambda m, args, out: zeros.append((len(args[0]), float((args[0] == 0).all(1).float().mean())))
        )
    values = one_step(training)
    assert torch.isfinite(values["makd"])
    if student == "vit":
        (_, whole), (count, part) = rows
        assert count == 8
        assert part < 0.6 * whole + 1
    else:
        (first, before), (second, masked) = zeros
        assert first == second == 8
        assert before < 0.2
        assert masked >= 0.5


def test_kinds_that_cannot_leave_patches_out_are_shown_painted_ones(
    digits: Data, teacher: TeacherModel, transformer: TeacherModel, tmp_path: Path
) -> None:
    for source, student in ((teacher, "vit"), (transformer, "cnn"), (teacher, "cnn")):
        values = one_step(prepared(digits, source, tmp_path, student=student, tokens="dmae"))
        assert torch.isfinite(values["dmae"])
