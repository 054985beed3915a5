"""What a finished trial is worth: its rank, by (last step, value there), complete ones above all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch.searchers.mcts.rewards import points, standing

UP, DOWN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE


def rewards(
    trials: list[FrozenTrial], *directions: StudyDirection, reward: str = "rank", emphasis: float = 1.0
) -> list[float]:
    rows = np.array([standing(trial, directions) for trial in trials])
    worth, scale = points(rows, reward, emphasis)
    return [value / scale for value in worth.tolist()]


def complete(*values: float) -> FrozenTrial:
    return create_trial(values=list(values))


def pruned(**reports: float) -> FrozenTrial:
    steps = {int(step.removeprefix("at")): value for step, value in reports.items()}
    return create_trial(state=TrialState.PRUNED, intermediate_values=steps)


def test_further_beats_better() -> None:
    trials = [pruned(at1=0.9), pruned(at1=0.1, at3=0.2), complete(0.1), pruned(at1=0.5), complete(0.3)]
    assert rewards(trials, UP) == [2 / 5, 3 / 5, 4 / 5, 1 / 5, 1.0]


def test_the_last_step_counts_not_the_last_report() -> None:
    trial = create_trial(state=TrialState.PRUNED, intermediate_values={5: 0.1, 2: 0.9})
    assert standing(trial, [UP]) == (5.0, 0.1)


def test_minimisation_turns_values_round() -> None:
    trials = [complete(1.0), complete(2.0), pruned(at0=5.0), pruned(at0=4.0)]
    assert rewards(trials, DOWN) == [1.0, 3 / 4, 1 / 4, 2 / 4]


def test_equals_share_their_mean_rank() -> None:
    assert rewards([complete(1.0), complete(1.0), complete(0.0), complete(1.0)], UP) == [0.75, 0.75, 0.25, 0.75]


def test_a_failure_is_worth_nothing_and_takes_no_rank() -> None:
    assert rewards([pruned(), complete(0.0), pruned(), complete(1.0)], UP) == [0.0, 0.5, 0.0, 1.0]
    assert rewards([pruned(), pruned()], UP) == [0.0, 0.0]


def test_nan_is_the_worst_value_at_its_step() -> None:
    trials = [pruned(at1=math.nan), pruned(at1=-1e9), pruned(at0=1.0)]
    assert rewards(trials, UP) == [2 / 3, 1.0, 1 / 3]
    assert rewards(trials, DOWN) == [2 / 3, 1.0, 1 / 3]


def test_infinite_values_have_their_place() -> None:
    assert rewards([complete(math.inf), complete(-math.inf), complete(0.0)], UP) == [1.0, 1 / 3, 2 / 3]


def test_several_objectives_count_dominators() -> None:
    trials = [complete(1.0, 1.0), complete(2.0, 2.0), complete(0.5, 0.5), complete(0.5, 3.0), pruned()]
    # Accuracy up, cost down: (0.5, 3.0) is dominated by all three others, the rest by nobody.
    assert rewards(trials, UP, DOWN) == [3 / 4, 3 / 4, 3 / 4, 1 / 4, 0.0]


def test_points_do_not_depend_on_order() -> None:
    trials = [complete(v) for v in (0.3, 0.1, 0.2)] + [pruned(at1=0.5)]
    forward, backward = rewards(trials, UP), rewards(trials[::-1], UP)
    assert forward == backward[::-1]


@pytest.mark.parametrize("count", [1, 2, 17])
def test_rewards_lie_in_the_unit_interval_and_the_best_earns_one(count: int) -> None:
    found = rewards([complete(float(k % 5)) for k in range(count)], UP)
    assert all(0 < reward <= 1 for reward in found)
    assert max(rewards([complete(float(k)) for k in range(count)], UP)) == 1.0


def test_other_scales_keep_distances() -> None:
    trials = [complete(0.0), complete(1.0), complete(10.0)]
    assert rewards(trials, UP, reward="minmax") == pytest.approx([0.0, 0.1, 1.0])
    assert rewards(trials, DOWN, reward="minmax") == pytest.approx([1.0, 0.9, 0.0])
    z = (np.array([0.0, 1.0, 10.0]) - 11 / 3) / np.std([0.0, 1.0, 10.0])
    assert rewards(trials, UP, reward="zscore") == pytest.approx(list(1 / (1 + np.exp(-1.7 * z))))


@pytest.mark.parametrize("scale", ["rank", "minmax", "zscore"])
def test_on_every_scale_the_pruned_stay_below(scale: str) -> None:
    trials = [complete(-math.inf), complete(5.0), complete(math.inf), pruned(at1=9.0), pruned(at1=1.0), pruned()]
    found = rewards(trials, UP, reward=scale)
    assert found[2] > found[1] > found[0] >= found[3] > found[4] > found[5] == 0.0
    assert max(found) <= 1.0
    assert len(set(rewards([complete(3.0)] * 4, UP, reward=scale))) == 1


def test_emphasis_is_a_power() -> None:
    trials = [complete(float(k)) for k in range(4)]
    assert rewards(trials, UP, emphasis=3.0) == pytest.approx([(k / 4) ** 3 for k in range(1, 5)])
