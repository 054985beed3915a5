"""Views are pure functions of (sample id, view index, policy, seed)."""

from __future__ import annotations

import pytest
import torch

from kdsearch.kd_methods import ViewPolicy
from kdsearch.runs.data import Data
from kdsearch.runs.views import Augmentation, ViewSpec, mixing, uniform

POLICIES = [
    ViewPolicy(),
    ViewPolicy(mixup=1.0),
    ViewPolicy(cutmix=1.0),
    ViewPolicy(mixup=0.3, cutmix=1.0, mix_probability=0.5),
]
AUGMENTATIONS = [Augmentation(shift=1), Augmentation(shift=2, flip=True), Augmentation(crop=0.4, flip=True)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_view_does_not_depend_on_its_batch(digits: Data, policy: ViewPolicy, augmentation: Augmentation) -> None:
    spec = ViewSpec(augmentation, policy, seed=3, samples=len(digits.train))
    ids = torch.tensor([5, 17, 200, 899, 44, 3])
    whole = digits.view(ids, 7, spec)
    for k in (0, 3, 5):
        alone = digits.view(ids[k : k + 1], 7, spec)
        torch.testing.assert_close(alone.images[0], whole.images[k])
        assert alone.target[0] == whole.target[k]
        if whole.soft_target is not None:
            assert alone.soft_target is not None
            torch.testing.assert_close(alone.soft_target[0], whole.soft_target[k])


def test_views_differ_by_index_and_by_seed(digits: Data) -> None:
    ids = torch.arange(64)
    spec = ViewSpec(Augmentation(shift=1), ViewPolicy(), 0, 900)
    first = digits.view(ids, 0, spec).images
    assert not torch.equal(first, digits.view(ids, 1, spec).images)
    assert not torch.equal(first, digits.view(ids, 0, ViewSpec(Augmentation(shift=1), ViewPolicy(), 1, 900)).images)
    assert torch.equal(first, digits.view(ids, 0, spec).images)


def test_uniform_numbers_are_uniform_and_uncorrelated() -> None:
    ids = torch.arange(20_000)
    a, b = uniform(ids, 0, 0, 0), uniform(ids, 1, 0, 0)
    assert float(a.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(a.var()) == pytest.approx(1 / 12, abs=0.003)
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([a[1:], a[:-1]]))[0, 1])) < 0.03
    assert float(a.max()) < 1.0


def test_mixed_labels_state_what_is_shown(digits: Data) -> None:
    spec = ViewSpec(Augmentation(), ViewPolicy(augment=False, cutmix=1.0), 0, len(digits.train))
    ids = torch.arange(100)
    step = digits.view(ids, 0, spec)
    mixed = mixing(ids, 0, spec)
    assert mixed is not None
    assert step.soft_target is not None
    raw, other = digits.train.take(ids), digits.train.take(mixed[0])
    differs = raw != other
    kept = ((step.images == raw) & differs).flatten(1).sum(1) / differs.flatten(1).sum(1).clamp_min(1)
    own = step.soft_target.gather(1, digits.train.labels[ids][:, None]).squeeze(1)
    same = digits.train.labels[ids] == digits.train.labels[mixed[0]]
    torch.testing.assert_close(step.soft_target.sum(1), torch.ones(100))
    assert float((kept - own)[~same].abs().mean()) < 0.15  # pixels that differ are a sample of all pixels


def test_subset_is_class_balanced_and_seeded(digits: Data) -> None:
    ids = digits.subset(0.3, seed=1)
    counts = torch.bincount(digits.train.labels[ids], minlength=10)
    assert counts.min() >= 25
    assert torch.equal(ids, digits.subset(0.3, seed=1))
    assert not torch.equal(ids, digits.subset(0.3, seed=2))
