"""The combiner of proxies: what it learns, what it does not, and when it may prune."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kdsearch.proxies import combine
from kdsearch.proxies._columns import Columns
from kdsearch.proxies._ridge import PENALTIES, errors, fit
from kdsearch.proxies.agreement import kendall
from kdsearch.proxies.combine import Combiner, cross_validated, standardised, standing


def networks(n: int, seed: int = 0, noise: float = 0.2) -> tuple[list[dict[str, Any]], Any]:
    """Accuracy saturates with the logarithm of a size and grows with a second score; two further ones say nothing."""
    rng = np.random.default_rng(seed)
    size, other, nothing = rng.uniform(0, 3, n), rng.normal(size=n), rng.normal(size=(n, 2))
    accuracy = 2 * size - 0.3 * size**2 + other + noise * rng.normal(size=n)
    rows = [
        {"params": 1000 * math.exp(s), "other": o, "noise": a, "more": b}
        for s, o, (a, b) in zip(size, other, nothing, strict=True)
    ]
    return rows, accuracy


def test_leave_one_out_errors_are_those_of_refitting() -> None:
    rng = np.random.default_rng(1)
    designs, y = rng.normal(size=(2, 12, 3)), rng.normal(size=12)
    found = errors(designs, y)
    assert found.shape == (2, len(PENALTIES))
    for k, p in ((0, 0), (1, 4), (1, 9)):
        residuals = []
        for i in range(12):
            rest = np.arange(12) != i
            # The penalised normal equations of the centred whole, less row i: what a closed form leaves out.
            mean = designs[k].mean(0)
            a, b = np.c_[np.ones(12), designs[k] - mean][rest], y[rest]
            penalty = PENALTIES[p] * 12 * np.diag([0, 1, 1, 1])
            weights = np.linalg.solve(a.T @ a + penalty, a.T @ b)
            residuals.append(y[i] - np.r_[1, designs[k][i] - mean] @ weights)
        assert found[k, p] == pytest.approx(np.mean(np.square(residuals)))
    best = fit(designs[0], y)
    assert best.error == pytest.approx(errors(designs[:1], y).min())


def test_columns_take_logarithms_of_sizes_and_nothing_from_other_rows() -> None:
    scores = np.array([[1.0, -1.0, 0.5, 3.0], [math.e, -math.e, -0.5, 3.0], [math.e**2, math.nan, 1.5, 3.0]])
    columns = Columns.learn(scores)
    assert columns.telling.tolist() == [True, True, True, False]
    standard = columns(scores)
    root = math.sqrt(1.5)
    assert standard[:, 0] == pytest.approx([-root, 0, root])
    assert standard[0, 1] > standard[1, 1] == standard[2, 1]  # missing: as bad as the worst
    beyond = columns(np.array([[1e9, -1e-9, -50.0, 8.0]]))[0]
    assert beyond[0] == pytest.approx(root + 0.5)
    assert beyond[2] == pytest.approx(standard[1, 2] - 0.5)


def test_a_score_of_the_other_sign_is_beyond_all_that_were_seen() -> None:
    seen = np.array([[-9.0, 9.0], [-5.0, 5.0], [-2.0, 2.0], [-0.5, 0.5]])
    columns = Columns.learn(seen)
    best, worst = columns(seen).max(0)[0] + 0.5, columns(seen).min(0)[1] - 0.5
    for score in (0.0, 0.1, 3.0):
        assert columns(np.array([[score, -score]]))[0] == pytest.approx([best, worst])


def test_it_finds_what_tells_and_predicts_the_unseen() -> None:
    rows, accuracy = networks(80)
    combiner = Combiner.fit(rows[:40], accuracy[:40])
    assert list(combiner.proxies)[:2] in (["params", "other"], ["other", "params"])
    held = kendall(combiner.predict(rows[40:]), accuracy[40:])
    assert held > 0.8 > kendall([row["params"] for row in rows[40:]], accuracy[40:])
    found = standing(rows[:40], accuracy[:40])
    assert found.earned
    assert found.bar < found.lower < found.tau
    assert found.tau == pytest.approx(held, abs=0.1)


def test_it_is_a_function_of_its_data() -> None:
    rows, accuracy = networks(30)
    assert (cross_validated(rows, accuracy) == cross_validated(rows, accuracy)).all()
    shuffled = [dict(reversed(row.items())) for row in rows]
    assert Combiner.fit(shuffled, accuracy).predict(rows) == pytest.approx(Combiner.fit(rows, accuracy).predict(rows))


def test_a_held_out_network_leaves_no_trace_in_its_own_prediction() -> None:
    rows, accuracy = networks(32)
    changed = accuracy.copy()
    changed[5] = 1e6
    before, after = (cross_validated(rows, target)[5] for target in (accuracy, changed))
    assert before == after


def test_worst_constant_and_missing_scores() -> None:
    rows, accuracy = networks(40)
    for k, row in enumerate(rows):
        row |= {"constant": 7.0, "never": math.nan, "broken": -math.inf if k % 3 == 0 else 1.0, "absent": None}
    combiner = Combiner.fit(rows, accuracy)
    assert not {"constant", "never", "absent"} & set(combiner.proxies)
    assert np.isfinite(combiner.predict([*rows, {}, {"params": -3.0, "other": math.inf}])).all()
    worst, best = ({"params": 5000.0, "other": other} for other in (-math.inf, 2.0))
    assert np.diff(combiner.predict([worst, best]))[0] > 0


def test_too_few_networks_or_nothing_to_tell() -> None:
    for n in (0, 1, 2, 5):
        rows, accuracy = networks(n)
        assert Combiner.fit(rows, accuracy).predict(rows).tolist() == [0.0] * n
        assert not standing(rows, accuracy).earned
    rows, _ = networks(20)
    flat = standing(rows, [0.9] * 20)
    assert not flat.earned
    assert flat.to_dict()["tau"] is None
    with pytest.raises(ValueError, match="finite"):
        Combiner.fit(rows, [math.nan] * 20)
    with pytest.raises(ValueError, match="20 networks with 3"):
        Combiner.fit(rows, [1, 2, 3])


def test_a_collapsed_training_does_not_outweigh_the_rest() -> None:
    rows, accuracy = networks(40)
    accuracy[3] = -1e4
    assert standardised(accuracy).min() == -combine.OUTLYING
    rest = [k for k in range(40) if k != 3]
    found = Combiner.fit(rows, accuracy).predict([rows[k] for k in rest])
    assert kendall(found, accuracy[rest]) > 0.6


def test_noise_hardly_ever_earns() -> None:
    """Scores that say nothing, over many seeds and sizes."""
    earned = looks = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = [{"params": math.exp(a), "x": b, "y": c} for a, b, c in rng.normal(size=(40, 3))]
        accuracy = rng.normal(size=40)
        for n in (10, 25, 40):
            looks += 1
            earned += standing(rows[:n], accuracy[:n]).earned
    assert looks == 60
    assert earned <= 1


def test_the_parameter_count_has_to_be_beaten() -> None:
    rng = np.random.default_rng(0)
    size = rng.uniform(0, 3, 40)
    rows = [{"params": math.exp(s), "x": x} for s, x in zip(size, rng.normal(size=40), strict=True)]
    found = standing(rows, size)
    assert found.bar == pytest.approx(1)
    assert found.lower > 0.3
    assert not found.earned
    without = [{"x": row["params"]} for row in rows]
    assert standing(without, size).earned  # nobody counted parameters: there is no bar
