"""The probe: which stages, embedding and classifier it finds in many architectures, and that the tap gives these."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods import Need
from kdsearch.kd_methods.tap import Tap, probe

from .architectures import ALL_FEATURES, CIFAR, build, measured

FOUND = {
    "resnet": (["stage1", "stage2", "stage3"], [(16, 32), (32, 16), (64, 8)], 64, "head"),
    "wrn": (["stage1", "stage2", "stage3"], [(16, 32), (32, 16), (64, 8)], 64, "head"),
    "cnn": (["stages.stage1", "stages.stage2", "stages.stage3"], [(16, 32), (32, 16), (64, 8)], 64, "head"),
    "vit": ([f"blocks.{k}" for k in range(4)], [(48, 8)] * 4, 48, "head"),
    "resnet18": (
        ["act1", "layer1", "layer2", "layer3", "layer4"],
        [(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)],
        512,
        "fc",
    ),
    "torchvision": (
        ["relu", "layer1", "layer2", "layer3", "layer4"],
        [(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)],
        512,
        "fc",
    ),
    "mobilenetv2_050": (
        [f"blocks.{k}" for k in (0, 1, 2, 4, 6)],
        [(8, 16), (16, 8), (16, 4), (48, 2), (160, 1)],
        1280,
        "classifier",
    ),
    "efficientnet_b0": (
        [f"blocks.{k}" for k in (0, 1, 2, 4, 6)],
        [(16, 16), (24, 8), (40, 4), (112, 2), (320, 1)],
        1280,
        "classifier",
    ),
    "convnext_atto": ([f"stages.{k}" for k in range(4)], [(40, 8), (80, 4), (160, 2), (320, 1)], 320, "head.fc"),
    "swin_tiny_patch4_window7_224": (
        [f"layers.{k}" for k in range(4)],
        [(24, 8), (48, 4), (96, 2), (192, 1)],
        192,
        "head.fc",
    ),
    "vit_tiny_patch16_224": ([f"blocks.{k}" for k in (2, 5, 8, 11)], [(192, 4)] * 4, 192, "head"),
    "deit_tiny_distilled_patch16_224": ([f"blocks.{k}" for k in (2, 5, 8, 11)], [(192, 4)] * 4, 192, "head"),
    "functional": (["conv1", "conv2"], [(8, 32), (12, 16)], 10, "fc2"),
}
PREFIX = {"vit": 1, "vit_tiny_patch16_224": 1, "deit_tiny_distilled_patch16_224": 2}


@pytest.mark.parametrize("name", FOUND)
def test_probe_finds_the_stages(name: str) -> None:
    spec = measured(name)
    paths, shapes, embedding, classifier = FOUND[name]
    assert [s.path for s in spec.stages] == paths
    assert [(s.channels, s.size) for s in spec.stages] == [(c, (side, side)) for c, side in shapes]
    assert {s.kind for s in spec.stages} == {"token" if name in PREFIX else "map"}
    assert {s.prefix for s in spec.stages} == {PREFIX.get(name, 0)}
    assert (spec.embedding, spec.classifier, spec.classes) == (embedding, classifier, 10)
    assert spec.parameters == sum(p.numel() for p in build(name).parameters())
    depths = [s.depth for s in spec.stages]
    assert depths == sorted(depths)
    assert 0 < depths[0] <= depths[-1] < 1


@pytest.mark.parametrize("name", FOUND)
def test_signals_have_the_measured_shapes(name: str) -> None:
    model, spec = build(name), measured(name)
    model.train()
    with Tap(model, spec, ALL_FEATURES) as tap:
        signals = tap(torch.randn(3, *CIFAR))
    assert signals.logits.shape == (3, 10)
    for features in (signals.features, signals.preact):
        for tensor, stage in zip(features, spec.stages, strict=True):
            height, width = stage.size
            tokens = (3, stage.prefix + height * width, stage.channels)
            assert tensor.shape == (tokens if stage.kind == "token" else (3, stage.channels, height, width))
    assert signals.embedding is not None
    assert signals.embedding.shape == (3, spec.embedding)
    assert signals.classifier is not None
    assert signals.classifier[0].shape == (10, spec.embedding)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_embedding_and_classifier_give_the_logits(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad(), Tap(model, measured(name), ALL_FEATURES) as tap:
        signals = tap(torch.randn(2, *CIFAR))
    assert signals.embedding is not None
    assert signals.classifier is not None
    torch.testing.assert_close(F.linear(signals.embedding, *signals.classifier), signals.logits)


def test_a_classifier_that_is_a_convolution() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.last = nn.Conv2d(4, 10, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(x)).flatten(1)

    model = Head()
    spec = probe(model, CIFAR)
    assert (spec.classifier, spec.embedding, [s.path for s in spec.stages]) == ("last", 4, ["body.1"])
    with Tap(model, spec, ALL_FEATURES) as tap:
        signals = tap(torch.randn(2, *CIFAR))
    assert signals.classifier is not None
    assert signals.embedding is not None
    torch.testing.assert_close(F.linear(signals.embedding, *signals.classifier), signals.logits)


def test_a_model_without_a_linear_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    spec = probe(model, CIFAR)
    assert (spec.classifier, spec.embedding, spec.classes) == (None, None, 10)
    with pytest.raises(ValueError, match="no linear classifier"):
        Tap(model, spec, frozenset({Need.EMBEDDING}))


def test_what_is_no_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match=r"with logits \[B, C\], not with \(2, 10, 30, 30\)"):
        probe(nn.Conv2d(3, 10, 3), CIFAR)
