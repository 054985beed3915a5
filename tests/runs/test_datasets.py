"""Data sets: splits, the official CIFAR-100 files, image folders in memory and streamed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdsearch.errors import UserError
from kdsearch.kd_methods import ViewPolicy
from kdsearch.runs import datasets
from kdsearch.runs.data import Data
from kdsearch.runs.distil import distil
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.settings import Seeds, Settings
from kdsearch.runs.views import ViewSpec
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_images = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared images are not beside this checkout")


def test_digits_are_split_once_and_for_all(digits: Data) -> None:
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [900, 300, 597]
    assert digits.fingerprint == datasets.load("digits").fingerprint
    rows = torch.cat([s.images.flatten(1) for s in (digits.train, digits.validation, digits.test)])  # type: ignore[union-attr]
    whole = datasets.load("digits")
    assert len(rows) == 1797
    counts = torch.bincount(whole.validation.labels, minlength=10)
    assert counts.min() >= 28


def test_any_set_can_be_had_at_another_size(digits: Data) -> None:
    large = datasets.load("digits", image_size=16)
    assert large.input_shape == (1, 16, 16)
    assert large.fingerprint != digits.fingerprint
    assert torch.equal(large.validation.labels, digits.validation.labels)
    small = torch.nn.functional.avg_pool2d(large.test.images.float(), 2)  # type: ignore[union-attr]
    assert (small - digits.test.images.float()).abs().mean() < 20  # type: ignore[union-attr]
    assert datasets.load("digits", image_size=8).fingerprint == digits.fingerprint


@needs_images
def test_cifar100_in_the_official_layout_trains() -> None:
    data = datasets.load("cifar100", root=str(SHARED / "cifar100"), samples=300)
    assert data.input_shape == (3, 32, 32)
    assert data.classes == 100
    assert len(data.train) == 300
    assert len(data.test) == 10_000
    assert data.augmentation.shift == 4
    assert data.augmentation.flip
    data.test.labels = data.test.labels[:64]
    data.validation.labels = data.validation.labels[:64]
    world = World(data, None, Settings(epochs=1, views=1, evaluations=1), Path())
    recipe = Recipe.from_dict({"student": {"family": "resnet", "depth": 8, "width": 0.5}})
    done = distil(recipe.without_distillation(), world, Seeds.search(0), Fidelity("t", data=0.5))
    assert done.trained.steps > 0


@needs_images
def test_a_cut_down_cifar10_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="cifar10 cannot be read"):
        datasets.load("cifar10", root=str(SHARED / "cifar10-mini"))


@needs_images
@pytest.mark.parametrize("streamed", [False, True])
def test_image_folders_give_the_same_views_in_memory_and_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    for wnid in sorted((SHARED / "tiny-imagenet-mini" / "tiny-imagenet-200" / "train").iterdir())[:3]:
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / wnid.name).symlink_to(wnid / "images")
    kept = datasets.load("image_folder", root=str(tmp_path), image_size=32, validation=0.2)
    if streamed:
        monkeypatch.setattr(datasets, "SMALL", 0)
    data = datasets.load("image_folder", root=str(tmp_path), image_size=32, validation=0.2)
    assert isinstance(data.train.images, torch.Tensor) != streamed
    assert data.classes == 3
    assert len(data.train) + len(data.validation) + len(data.test) == 120
    spec = ViewSpec(data.augmentation, ViewPolicy(mixup=1.0), 0, len(data.train))
    ids = torch.arange(len(data.train))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip(data.epoch(ids, order, 32, 1, spec), kept.epoch(ids, order, 32, 1, spec), strict=True):
        torch.testing.assert_close(mine.images, theirs.images)
        torch.testing.assert_close(mine.soft_target, theirs.soft_target)


@needs_images
def test_other_classes_in_the_test_folder_are_named(tmp_path: Path) -> None:
    source = sorted((SHARED / "tiny-imagenet-mini" / "tiny-imagenet-200" / "train").iterdir())
    for split, folders in (("train", source[:2]), ("test", source[1:3])):
        (tmp_path / split).mkdir()
        for folder in folders:
            (tmp_path / split / folder.name).symlink_to(folder / "images")
    with pytest.raises(UserError, match="differ from train's"):
        datasets.load("image_folder", root=str(tmp_path), image_size=16)
