"""What every transform that puts modules in a student's place must do; used by the tests of each."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kdsearch
from kdsearch.runs import datasets
from kdsearch.runs.config import RunConfig
from kdsearch.runs.retrain import Student
from kdsearch.search_space.students import StudentFamily, StudentTransform

DIGITS = (1, 8, 8)
CIFAR = (3, 32, 32)
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"channels": 6},
    "resnet": {"depth": 8, "width": 0.5},
    "wrn": {"depth": 10, "width": 0.5},
}


class FixedWidth(StudentFamily):
    """A user's family whose constructor knows no width: thinning has to cut its channels out."""

    name = "fixed_width"
    title = "Three convolutions"
    paper = ""
    year = 2020

    def network(self, input_shape: tuple[int, int, int], classes: int, branches: frozenset[str]) -> nn.Module:
        body: list[nn.Module] = []
        for channels in (input_shape[0], 8, 8):
            body += [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(inplace=True)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def built(family: StudentFamily, transform: StudentTransform, shape: tuple[int, int, int] = DIGITS) -> Any:
    torch.manual_seed(0)
    return transform.apply(family.build(shape, 10))


def trains(model: nn.Module, shape: tuple[int, int, int] = DIGITS) -> None:
    """A forward and backward pass reach every parameter with finite gradients."""
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, 10)
    logits.square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name


def agrees_in_other_formats(model: nn.Module, shape: tuple[int, int, int] = CIFAR) -> None:
    """channels_last gives the same answer, bfloat16 autocast a close one, and both have finite gradients."""
    model.eval()
    images = torch.randn(4, *shape)
    plain = model(images)
    last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(low.float(), plain, rtol=0.1, atol=0.1 * float(plain.detach().abs().max()))
    low.float().square().mean().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def exports(model: nn.Module, path: Path, shape: tuple[int, int, int]) -> None:
    """As ONNX, the way a run exports its student, it answers alike, for any number of images."""
    pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about sizes that it takes for constants
        torch.onnx.export(
            model,
            (torch.randn(1, *shape),),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}},
            dynamo=False,
        )
        images = torch.randn(3, *shape)
        (logits,) = ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images).detach(), rtol=1e-4, atol=1e-5)


def trained(transform: str | dict[str, Any], cache: Path, **student: Any) -> Student:
    """A small student distilled on the digits through the public interface. `cache` keeps the teacher."""
    config = RunConfig.model_validate(
        {
            "data": {"name": "digits"},
            "teacher": {"model": {"family": "cnn", "channels": 8}, "epochs": 4},
            "fidelity": {"epochs": 3, "evaluations": 1},
            "engine": {"device": "cpu"},
        }
    )
    recipe = {
        "student": {"family": "cnn", "channels": 8, **student},
        "transform": transform,
        "logits": "kd",
        "optimizer": {"method": "sgd", "lr": 0.1},
    }
    return kdsearch.distill(recipe, data=datasets.load("digits"), config=config, cache=cache)
