"""Training data of which only a part has labels: mean teacher's setting, and what methods make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdsearch.errors import TrialFailure, UserError
from kdsearch.kd_methods import METHODS, Need
from kdsearch.kd_methods.label_loss import label_loss
from kdsearch.kd_methods.signals import UNLABELLED, Batch
from kdsearch.runs import assemble, datasets
from kdsearch.runs.distil import distil
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.settings import Seeds
from kdsearch.runs.trial import _shown
from kdsearch.runs.views import ViewSpec
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.space import SearchSpace

from .test_training import TRAINED, for_method


@pytest.fixture
def partly(world: World) -> World:
    return replace(world, data=datasets.load("digits", labelled=0.1))


def test_a_balanced_share_keeps_its_labels() -> None:
    whole, data = datasets.load("digits"), datasets.load("digits", labelled=0.1)
    kept = data.train.labels >= 0
    assert data.partly
    assert not whole.partly
    assert set(data.train.labels[kept].bincount().tolist()) <= {8, 9, 10}
    assert torch.equal(data.train.labels[kept], whole.train.labels[kept])
    assert len(data.train) == len(whole.train)
    assert data.fingerprint != whole.fingerprint
    assert (data.subset(0.5, 0)).numel() == pytest.approx(len(data.train) / 2, abs=10)


def test_proxies_see_labelled_images() -> None:
    whole = datasets.load("digits").train.labels
    assert _shown(whole).equal(torch.arange(len(whole))[:: len(whole) // 64][:64])
    for share, known in ((0.1, 64), (0.02, 20)):
        labels = datasets.load("digits", labelled=share).train.labels
        ids = _shown(labels)
        assert len(ids.unique()) == 64
        assert (labels[ids] >= 0).sum() == known == min(64, (labels >= 0).sum())


def test_the_label_loss_is_the_mean_over_what_has_a_label() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    target = torch.tensor([0, UNLABELLED, 2, UNLABELLED])
    expected = -logits.log_softmax(1)[[0, 2], [0, 2]].mean()
    batch = Batch(target, torch.arange(4), partly=True)
    assert label_loss(logits, batch).item() == pytest.approx(expected.item(), rel=1e-12)
    none = Batch(torch.full((4,), UNLABELLED), torch.arange(4), partly=True)
    assert label_loss(logits, none).item() == 0.0


def test_mixed_labels_hold_the_share_that_is_known() -> None:
    data = datasets.load("digits", labelled=0.1)
    ids = torch.arange(64)
    spec = ViewSpec(data.augmentation, METHODS["funmatch"]().policy(), 0, len(data.train))  # type: ignore[attr-defined]
    step = data.view(ids, 0, spec)
    assert step.soft_target is not None
    assert step.soft_target.sum() < 40
    assert (step.soft_target.sum(1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_learns_from_such_data_or_says_why_not(
    partly: World, transformer: TeacherModel, name: str
) -> None:
    if Need.QKV in METHODS[name].needs.teacher:
        partly = replace(partly, teacher=transformer)
    chosen, brief = for_method(name), Fidelity("tiny", data=0.15)
    if METHODS[name].reads_labels or name == "crd":
        with pytest.raises(TrialFailure, match="label"):
            distil(chosen, partly, Seeds.search(0), brief)
        return
    done = distil(chosen, partly, Seeds.search(0), brief)
    assert all(value == value for value in done.trained.losses.values())


def test_the_space_leaves_out_what_reads_every_label(world: World) -> None:
    whole = SearchSpace.from_dict({})
    found = assemble.space(whole, None, 10, partly=True)
    assert "dkd" in whole.options["logits"]
    assert "dkd" not in found.options["logits"]
    assert {"kd", "logit_mse"} <= set(found.options["logits"])


def test_an_image_folder_takes_further_images(tmp_path: Path) -> None:
    for k in range(24):
        place = tmp_path / "data" / "train" / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * k, 0, 0)).save(place / f"{k}.png")
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for k in range(5):
        Image.new("RGB", (16, 16), (0, 10 * k, 0)).save(tmp_path / "more" / "deep" / f"{k}.png")
    plain = datasets.load("image_folder", root=str(tmp_path / "data"), image_size=16)
    data = datasets.load("image_folder", root=str(tmp_path / "data"), image_size=16, unlabelled=str(tmp_path / "more"))
    assert len(data.train) == len(plain.train) + 5
    assert int((data.train.labels == UNLABELLED).sum()) == 5
    assert len(data.validation) == len(plain.validation)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        datasets.load("image_folder", root=str(tmp_path / "data"), unlabelled=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="only an image_folder"):
        datasets.load("digits", unlabelled=str(tmp_path))
