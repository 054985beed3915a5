"""The recurrent family: shapes, what it reads, its size, its cost, and what methods can and cannot ask of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdsearch import kd_methods, proxies
from kdsearch.kd_methods import DataSpec, Need
from kdsearch.kd_methods.tap import Tap, probe
from kdsearch.search_space import students
from kdsearch.search_space.pairing import pair
from kdsearch.search_space.students import measure

DIGITS, PHOTOS = (1, 8, 8), (3, 32, 32)
SHAPES = [DIGITS, PHOTOS, (1, 2, 2), (2, 7, 3), (3, 1, 1), (1, 2, 5)]
cells = pytest.mark.parametrize("cell", ["lstm", "gru"])
scans = pytest.mark.parametrize("scan", ["rows", "columns"])


@cells
@scans
@pytest.mark.parametrize("shape", SHAPES)
def test_any_input_shape(cell: str, scan: str, shape: tuple[int, int, int]) -> None:
    model = students.create("rnn", cell=cell, scan=scan, hidden=16, layers=2).build(shape, 10)
    images = torch.randn(3, *shape)
    assert model(images).shape == (3, 10)
    spec = probe(model, shape)
    assert (spec.stages, spec.embedding, spec.classifier, spec.map) == ((), 16, "head", None)
    with Tap(model, spec, frozenset({Need.LOGITS, Need.EMBEDDING, Need.CLASSIFIER})) as tap:
        signals = tap(images)
    assert signals.embedding is not None
    assert signals.classifier is not None
    weight, bias = signals.classifier
    assert bias is not None
    torch.testing.assert_close(signals.embedding @ weight.T + bias, signals.logits)


@cells
@pytest.mark.parametrize(("shape", "hidden", "layers"), [(DIGITS, 16, 1), (PHOTOS, 32, 3)])
def test_size_and_cost_are_the_textbooks(cell: str, shape: tuple[int, int, int], hidden: int, layers: int) -> None:
    model = students.create("rnn", cell=cell, hidden=hidden, layers=layers).build(shape, 10)
    gates, steps, line = {"lstm": 4, "gru": 3}[cell], shape[1], shape[0] * shape[2]
    matrices = gates * hidden * (line + hidden) + (layers - 1) * gates * hidden * 2 * hidden
    head = 10 * hidden
    assert measure.parameters(model) == matrices + layers * 2 * gates * hidden + head + 10
    assert measure.macs(model, shape) == steps * matrices + head


@scans
def test_reads_one_line_after_another(scan: str) -> None:
    """What comes last is remembered best: only the last state reaches the classifier, and every line does."""
    torch.manual_seed(0)
    model = students.create("rnn", scan=scan, hidden=16).build((1, 5, 4), 3)
    images = torch.randn(1, 1, 5, 4, requires_grad=True)
    model(images).square().sum().backward()
    assert images.grad is not None
    lines = images.grad.abs().sum((0, 1, 3) if scan == "rows" else (0, 1, 2))
    assert len(lines) == (5 if scan == "rows" else 4)
    assert bool((lines > 0).all())
    assert lines[-1] > lines[0]


def test_columns_are_rows_of_the_turned_image() -> None:
    rows = students.create("rnn", hidden=8).build((2, 6, 5), 4)
    columns = students.create("rnn", hidden=8, scan="columns").build((2, 5, 6), 4)
    columns.load_state_dict(rows.state_dict())
    images = torch.randn(3, 2, 6, 5)
    torch.testing.assert_close(columns(images.transpose(2, 3)), rows(images))


@scans
def test_takes_other_resolutions(scan: str) -> None:
    model = students.create("rnn", scan=scan, hidden=8).build((1, 8, 8), 4)
    for shape in ((1, 4, 4), (1, 16, 16), (1, 5, 11)):
        assert model(torch.randn(2, *shape)).shape == (2, 4)


def test_forget_gates_begin_open() -> None:
    model: Any = students.create("rnn", hidden=8, layers=2).build(DIGITS, 10)
    for layer in range(2):
        bias = getattr(model.reader, f"bias_ih_l{layer}") + getattr(model.reader, f"bias_hh_l{layer}")
        assert bool((bias[8:16] == 1).all())
        assert not bool((bias[:8] == 1).any())


@cells
def test_thinned_and_widened_by_width(cell: str) -> None:
    family = students.create("rnn", cell=cell, hidden=100, layers=2, scan="columns")
    thin, wide = family.thinned(0.25), family.widened(1.5)
    assert thin is not None
    assert wide is not None
    assert (thin.hyper, wide.hyper) == ({**family.hyper, "hidden": 25}, {**family.hyper, "hidden": 150})


@pytest.mark.parametrize("policy", ["same_depth", "last", "middle", "all"])
def test_feature_methods_are_told_that_there_are_no_stages(policy: str) -> None:
    rnn = probe(students.create("rnn", hidden=8).build(DIGITS, 10), DIGITS)
    cnn = probe(students.create("cnn").build(DIGITS, 10), DIGITS)
    with pytest.raises(ValueError, match="the student has no stage to pair"):
        pair(rnn.stages, cnn.stages, policy)
    with pytest.raises(ValueError, match="the teacher has no stage to pair"):
        pair(cnn.stages, rnn.stages, policy)


def test_embedding_methods_bind() -> None:
    rnn = probe(students.create("rnn", hidden=8).build(DIGITS, 10), DIGITS)
    cnn = probe(students.create("cnn").build(DIGITS, 10), DIGITS)
    data = DataSpec(64, 10, DIGITS, torch.arange(64) % 10)
    parts = kd_methods.create("crd").bind(rnn, cnn, data)
    assert parts is not None


@cells
def test_second_derivatives(cell: str) -> None:
    """Methods that match input gradients differentiate twice."""
    model = students.create("rnn", cell=cell, hidden=8).build((1, 4, 4), 3)
    spec = probe(model, (1, 4, 4))
    with Tap(model, spec, frozenset({Need.LOGITS, Need.INPUT_GRADIENT})) as tap:
        signals = tap(torch.randn(2, 1, 4, 4), torch.tensor([0, 2]), create_graph=True)
    assert signals.input_gradient is not None
    signals.input_gradient.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", proxies.names())
def test_every_proxy_scores_it(name: str) -> None:
    rnn, cnn = students.create("rnn", hidden=8).build(DIGITS, 10), students.create("cnn").build(DIGITS, 10)
    images, target = torch.randn(16, *DIGITS), torch.arange(16) % 10
    if name in ("autodas", "meco", "naswot"):  # of convolutions, of maps, of rectified units
        with pytest.raises(ValueError, match="no"):
            proxies.create(name).score(rnn, cnn, images, target, seed=3)
        return
    first, again = (proxies.create(name).score(rnn, cnn, images, target, seed=3) for _ in range(2))
    assert first == again or name == "latency"  # a measurement
    assert first == first
    assert first > float("-inf")


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"cell": "rnn"}, "rnn.cell cannot be 'rnn'"),
        ({"scan": "row"}, "did you mean 'rows'"),
        ({"hidden": 0}, "rnn.hidden must lie in"),
    ],
)
def test_mistakes_get_one_clear_line(hyper: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        students.create("rnn", **hyper)
