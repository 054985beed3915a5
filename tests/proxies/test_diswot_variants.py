"""DisWOT's published variants, and the sum of its parts over many students."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch import proxies
from kdsearch.kd_methods.signals import UNLABELLED
from kdsearch.proxies._last import map_and_classifier
from kdsearch.proxies.diswot import (
    channel_similarity,
    first_image_similarity,
    relation_similarity,
    semantic_similarity,
    z_scored_sum,
)
from kdsearch.search_space.students.family import create
from tests.kd_methods.golden import agrees
from tests.proxies.test_proxies import golden, network


class Mean(nn.Module):
    """Ends a network without a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def test_the_first_image_alone_matches_the_golden() -> None:
    document, inputs = golden("diswot")
    case = next(c for c in document["cases"] if "buggy_tensor_call_first_sample" in c)
    teacher, student = (inputs[name] for name in case["uses"])
    expected = {"loss": case["buggy_tensor_call_first_sample"]}
    agrees(expected, first_image_similarity(student, teacher), {})
    other = torch.cat([student[:1], torch.randn_like(student[1:])])
    agrees(expected, first_image_similarity(other, teacher), {})


def test_pooled_maps_and_weights_match_the_goldens() -> None:
    document, inputs = golden("diswot")
    case = next(c for c in document["cases"] if c["label"] == "end to end")
    teacher, student = (network(document["modules"][name]) for name in ("teacher_net", "student_net"))
    seen = [map_and_classifier(m, inputs["images"], inputs["labels"], "weight") for m in (student, teacher)]
    pooled = [found.mean((2, 3)) for found, _ in seen]
    agrees({"loss": case["relation_on_pooled_feature"]}, relation_similarity(*pooled), {})
    weights = [weight for _, weight in seen if weight is not None]
    key = next(key for key in case if key.startswith("semantic_on_fc_weight"))
    agrees({"loss": case[key]}, semantic_similarity(*weights), {})


def test_channel_similarity_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    grams = [[F.normalize(x.flatten(1) @ x.flatten(1).T) for x in maps] for maps in (s, t)]
    expected = -sum(float((a - b).square().sum()) for a, b in zip(*grams, strict=True)) / (3 * 4)
    assert float(channel_similarity(s, t)) == pytest.approx(expected, rel=1e-12)
    for similarity in (channel_similarity, first_image_similarity):
        with pytest.raises(ValueError, match="4 channels, the teacher's 2"):
            similarity(s, t[:, :2])


@pytest.mark.parametrize("similarity", ["channels", "first_image"])
@pytest.mark.parametrize("family", ["vit", "rnn", "resnet"])
def test_channels_of_every_kind_of_student(similarity: str, family: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6)
    student, teacher = create(family).build((1, 8, 8), 10), create("cnn", channels=6).build((1, 8, 8), 10)
    score = proxies.create("diswot", part="relation", similarity=similarity).score(
        student, teacher, images, target, seed=0
    )
    assert -4 < score < 0


def test_the_relation_asks_for_no_classifier() -> None:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6)
    plain: nn.Module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 3), nn.ReLU(), nn.Flatten(2))
    student, teacher = nn.Sequential(plain, Mean()), create("cnn", channels=6).build((1, 8, 8), 10)
    assert -4 < proxies.create("diswot", part="relation").score(student, teacher, images, target, seed=0) < 0
    for part in ("sum", "semantic"):
        with pytest.raises(ValueError, match="no linear classifier"):
            proxies.create("diswot", part=part).score(student, teacher, images, target, seed=0)


def test_images_without_a_label_are_of_no_class() -> None:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([1, 2, UNLABELLED] * 2)
    model = create("cnn", channels=4).build((1, 8, 8), 10)
    _, found = map_and_classifier(model, images, target, "loss")
    loss = F.cross_entropy(model(images), target, ignore_index=UNLABELLED)
    weight = next(p for p in reversed(list(model.parameters())) if p.ndim == 2)
    torch.testing.assert_close(found, torch.autograd.grad(loss, weight)[0])


def test_z_scored_sum() -> None:
    relation, semantic = [-3e-4, -2e-4, -1e-4, -4e-4], [-0.2, -0.5, -0.1, -0.3]
    found = z_scored_sum(relation, semantic)

    def z(scores: list[float]) -> Tensor:
        row = torch.tensor(scores, dtype=torch.float64)
        return (row - row.mean()) / row.std(correction=0)

    torch.testing.assert_close(found, z(relation) + z(semantic))
    torch.testing.assert_close(z_scored_sum([1e3 * x + 7 for x in relation], semantic), found)
    holed = z_scored_sum([*relation, 1.0], [*semantic, -math.inf])
    torch.testing.assert_close(holed[:4], found)
    assert holed[4] == -math.inf
    torch.testing.assert_close(z_scored_sum([0.1] * 4, semantic), z(semantic))  # whose mean is not quite 0.1
    assert z_scored_sum([], []).shape == (0,)
    with pytest.raises(ValueError, match="one length"):
        z_scored_sum(relation, semantic[:2])


def test_the_sum_is_that_of_its_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(12, 1, 8, 8, generator=generator), torch.arange(12) % 10
    teacher: nn.Module = create("cnn", channels=8).build((1, 8, 8), 10)
    students = [create("cnn", channels=c).build((1, 8, 8), 10) for c in (4, 8, 12, 16)]
    parts = {
        part: [proxies.create("diswot", part=part).score(s, teacher, images, target, seed=0) for s in students]
        for part in ("sum", "relation", "semantic")
    }
    for whole, a, b in zip(*(parts[part] for part in ("sum", "relation", "semantic")), strict=True):
        assert whole == pytest.approx(a + b, rel=1e-5)
    assert all(math.isfinite(x) for x in z_scored_sum(parts["relation"], parts["semantic"]).tolist())
