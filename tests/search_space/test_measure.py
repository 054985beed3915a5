"""What a network costs: the memory and the time of an inference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdsearch.search_space import students
from kdsearch.search_space.students import measure

FLOAT = 4
DIGITS = (1, 8, 8)


def held(model: nn.Module, batch: int = 1) -> int:
    """Bytes of parameters, buffers and images."""
    own = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return own + batch * 64 * FLOAT


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 10)
    )


@pytest.mark.parametrize("batch", [1, 5])
def test_memory_is_the_peak_of_what_is_alive(batch: int) -> None:
    """At the ReLU its input and its output of 8 channels are alive; everything after that is less."""
    model = plain()
    assert measure.memory(model, DIGITS, batch) - held(model, batch) == batch * 2 * 8 * 64 * FLOAT


def test_work_in_place_takes_no_memory() -> None:
    model = plain()
    model[1] = nn.ReLU(inplace=True)
    assert measure.memory(model, DIGITS) - held(model) == (8 + 4) * 64 * FLOAT


class Skip(nn.Module):
    """A skip connection over two convolutions; a view keeps the whole of what it looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        part = self.first(x)[:, :1]
        return self.second(part.contiguous()) + part


def test_what_a_view_looks_at_stays_alive() -> None:
    model = Skip()
    # In the end: the 16 channels behind the view, the second convolution's 2 and their sum's 2.
    assert measure.memory(model, DIGITS) - held(model) == (16 + 2 + 2) * 64 * FLOAT


def test_shared_parameters_are_held_once() -> None:
    layer = nn.Linear(64, 64)
    once = measure.memory(nn.Sequential(nn.Flatten(), layer), DIGITS)
    assert measure.memory(nn.Sequential(nn.Flatten(), layer, layer), DIGITS) == once + 64 * FLOAT


@pytest.mark.parametrize("name", [name for name in students.names() if name != "timm"])
def test_every_family_has_its_memory(name: str) -> None:
    """The same each time, with and without storage behind the tensors, and the model is left as it was."""
    model: Any = students.create(name).build((3, 32, 32), 10)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = measure.memory(model, (3, 32, 32))
    assert found == measure.memory(model, (3, 32, 32))
    assert found > sum(p.numel() * FLOAT for p in model.parameters())
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_memory_of_networks_without_storage() -> None:
    found = measure.memory(plain(), DIGITS)
    with torch.device("meta"):
        assert measure.memory(plain(), DIGITS) == found


class Sometimes(nn.Module):
    """Takes one millisecond, or what the list says next."""

    def __init__(self, seconds: Iterator[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds = seconds
        self.threads: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.threads.add(torch.get_num_threads())
        end = time.thread_time() + next(self.seconds)
        while time.thread_time() < end:
            pass
        return x


def disturbed() -> Iterator[float]:
    """Every third inference takes ten times as long, and now and then a whole stretch."""
    k = 0
    while True:
        k += 1
        yield 0.01 if k % 3 == 0 or 60 < k < 90 else 0.001


def test_latency_sees_through_disturbances() -> None:
    model = Sometimes(disturbed())
    before = torch.get_num_threads()
    assert measure.latency(model, DIGITS) == pytest.approx(1.0, rel=0.25)
    assert model.threads == {1}
    assert torch.get_num_threads() == before


def test_waiting_for_the_processor_is_not_latency() -> None:
    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.002)
            return x

    assert measure.latency(Waiting(), DIGITS) < 1.0


def test_latency_grows_with_network_and_batch() -> None:
    small, large = (students.create("cnn", channels=c).build((3, 32, 32), 10) for c in (4, 48))
    found = measure.latency(small, (3, 32, 32))
    assert 0 < found < measure.latency(large, (3, 32, 32))
    assert found < measure.latency(small, (3, 32, 32), batch=64)
    assert small.training
