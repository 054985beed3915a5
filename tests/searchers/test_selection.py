"""The rules by which a value is taken, on hand-made statistics."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.evidence import Arm, Evidence, State
from kdsearch.searchers.mcts.priors import Belief
from kdsearch.searchers.mcts.selection import Question, allowed, best, choose, informed

NOTHING = Evidence.of(np.zeros(0), np.zeros(0, dtype=np.int64), 1, [], 0.0)


def evidence(**values: tuple[int, float]) -> Evidence:
    """Of v0=(visits, mean), v1=..."""
    keys = sorted(values, key=lambda k: float(k[1:]))
    visits = np.array([values[k][0] for k in keys], dtype=float)
    means = np.array([values[k][1] for k in keys])
    return Evidence(np.array([float(k[1:]) for k in keys]), visits, visits * means)


def counting(**options: Any) -> MCTS:
    chosen: dict[str, Any] = {"estimate": "prior", **options}
    return MCTS(**chosen)


def ask(distribution: BaseDistribution, *arms: Arm, seed: int = 0, near: Evidence = NOTHING, **more: Any) -> float:
    options = counting(**{key: more.pop(key) for key in list(more) if key in MCTS.parameters})
    anywhere = more.pop("anywhere", near)
    question = Question(Domain(distribution), {a.value: a for a in arms}, near, anywhere, **more)
    return choose(question, options, Random(seed))


def test_uct_is_the_published_formula() -> None:
    arms = [Arm(0.0, 10, 6.0), Arm(1.0, 3, 1.2), Arm(2.0, 2, 1.1)]
    scores = [a.total / a.visits + 0.5 * math.sqrt(math.log(15) / a.visits) for a in arms]
    assert best(arms, 0.5, Random(0)) == float(np.argmax(scores))
    assert best(arms, 0.0, Random(0)) == 0.0  # exploitation alone: the best mean


def test_ties_are_broken_by_the_seed() -> None:
    arms = [Arm(float(k), 2, 1.0) for k in range(4)]
    assert {best(arms, 1.0, Random(seed)) for seed in range(40)} == {0.0, 1.0, 2.0, 3.0}


def test_untried_choices_come_first_in_random_order() -> None:
    abc = CategoricalDistribution(("a", "b", "c"))
    taken = {ask(abc, Arm(0.0, 5, 5.0), near=evidence(v0=(5, 1.0)), seed=seed) for seed in range(30)}
    assert taken == {1.0, 2.0}


def test_a_prior_orders_the_untried() -> None:
    abc = CategoricalDistribution(("a", "b", "c"))
    belief = Belief(Domain(abc), at={0.0: 0.0, 1.0: 9.0, 2.0: 1.0})
    taken = [ask(abc, seed=seed, belief=belief) for seed in range(200)]
    assert taken.count(0.0) == 0
    assert 160 < taken.count(1.0) < 195
    assert ask(abc, seed=1, belief=Belief(Domain(abc), at=dict.fromkeys((0.0, 1.0, 2.0), 0.0))) in (0.0, 1.0, 2.0)


def test_a_default_comes_first_until_somebody_tried_it() -> None:
    abc = CategoricalDistribution(("a", "b", "c"))
    assert {ask(abc, first=2.0, seed=seed) for seed in range(9)} == {2.0}
    x = FloatDistribution(0, 1)
    assert ask(x, first=0.25) == 0.25
    assert ask(x, first=0.25, near=evidence(**{"v0.25": (1, 0.5)})) != 0.25
    assert ask(x, first=7.0) != 7.0  # outside the range


def test_a_number_is_widened_with_its_visits() -> None:
    x = FloatDistribution(0, 1)
    options: dict[str, Any] = {"widening": 1.0, "growth": 0.5, "sharing": 0.0}
    four = [Arm(0.1 * k, 4, 2.0) for k in range(4)]
    assert allowed(four, counting(**options)) == 4
    assert ask(x, *four, **options) in {a.value for a in four}
    five = [*four[:3], Arm(0.3, 5, 2.0)]
    assert allowed(five, counting(**options)) == 5
    assert ask(x, *five, **options) not in {a.value for a in five}


def test_a_walked_out_value_makes_room() -> None:
    x = FloatDistribution(0, 1)
    closed = [Arm(0.1 * k, 1, 1.0, State.CLOSED) for k in range(5)]
    assert ask(x, *closed) not in {a.value for a in closed}
    kinds = CategoricalDistribution(("a", "b"))
    assert ask(kinds, Arm(0.0, 9, 9.0, State.CLOSED), Arm(1.0, 9, 0.0), near=evidence(v0=(9, 1), v1=(9, 0))) == 1.0
    busy = (Arm(0.0, 1, 0.0, State.BUSY), Arm(1.0, 9, 9.0, State.CLOSED))
    assert ask(kinds, *busy) == 0.0


def test_a_full_grid_is_searched_again() -> None:
    full = [Arm(float(k), 1, k / 20, State.CLOSED) for k in range(20)]
    assert ask(IntDistribution(0, 19), *full, exploration=0.0) == 19.0


def test_new_values_are_near_good_ones_or_anywhere() -> None:
    x = FloatDistribution(0, 1)
    near = evidence(**{"v0.2": (3, 0.1), "v0.5": (3, 0.2), "v0.8": (3, 0.9), "v0.9": (3, 0.3)})
    drawn = [ask(x, near=near, seed=seed, prior_share=0.0, spread=0.02) for seed in range(50)]
    assert all(abs(value - 0.8) < 0.1 for value in drawn)
    drawn = [ask(x, near=near, seed=seed, prior_share=1.0) for seed in range(50)]
    assert min(drawn) < 0.2
    assert max(drawn) > 0.8


def test_young_arms_borrow_and_old_ones_do_not_care() -> None:
    elsewhere = evidence(v0=(21, 0.9))
    young = informed(Arm(0.0, 1, 0.0), elsewhere, counting(sharing=2.0))
    mean_elsewhere = 0.9 * 21 / 20
    assert (young.visits, young.total) == (3.0, pytest.approx(2 * mean_elsewhere))
    assert informed(Arm(0.0, 21, 3.0), elsewhere, counting()) == Arm(0.0, 21, 3.0)  # nothing but its own visits
    assert informed(Arm(0.0, 1, 0.0), elsewhere, counting(sharing=0.0)).visits == 1.0


def test_values_unknown_nearby_go_by_what_they_did_anywhere() -> None:
    kinds = CategoricalDistribution(("a", "b", "c"))
    near = evidence(v0=(12, 0.6))
    anywhere = evidence(v0=(20, 0.6), v1=(6, 0.1), v2=(6, 0.8))
    assert ask(kinds, Arm(0.0, 12, 7.2), near=near, anywhere=anywhere) == 2.0


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(3, 90, step=3),
        IntDistribution(1, 1000, log=True),
        FloatDistribution(-2.5, 2.5, step=0.1),
        FloatDistribution(1e-4, 1e2, log=True),
        FloatDistribution(-1, 1),
    ],
    ids=str,
)
def test_domain_places_and_values_agree(distribution: Any) -> None:
    domain, rng = Domain(distribution), Random(0)
    for _ in range(200):
        value = domain.draw(rng)
        assert distribution._contains(distribution.to_internal_repr(distribution.to_external_repr(value)))
        assert domain.contains(value)
        assert domain.at(domain.place(value)) == pytest.approx(value, rel=1e-9)
        near = domain.near(value, 0.05, rng)
        assert domain.contains(near)
    if domain.size < 1000:
        values = domain.values()
        assert len(values) == len(set(values)) == domain.size
        assert domain.untaken(values[0], set(values[:-1])) == values[-1]
        with pytest.raises(ValueError, match="every value"):
            domain.untaken(values[0], set(values))
    assert not domain.contains(1e6)
    inside = domain.within(np.array([distribution.low, distribution.high, 1e6]))
    assert inside.tolist() == [True, True, False]


def test_log_ranges_are_drawn_on_the_log_scale() -> None:
    domain, rng = Domain(FloatDistribution(1e-4, 1.0, log=True)), Random(0)
    drawn = [domain.draw(rng) for _ in range(400)]
    assert 160 < sum(value < 1e-2 for value in drawn) < 240


def test_puct_is_the_published_formula() -> None:
    arms = [Arm(0.0, 10, 6.0), Arm(1.0, 3, 1.2), Arm(2.0, 0, 0.0)]
    weights = {0.0: 1.0, 1.0: 2.0, 2.0: 5.0}
    shares = (1 / 8, 2 / 8, 5 / 8)
    for exploration in (0.01, 0.5, 2.0):
        means = [0.6, 0.4, 7.2 / 13]  # an untried one counts as the average
        bounds = [exploration * p * math.sqrt(13) / (1 + a.visits) for p, a in zip(shares, arms, strict=True)]
        expected = float(np.argmax(np.add(means, bounds)))
        assert best(arms, exploration, Random(0), weights.__getitem__) == expected


def test_puct_need_not_try_everything() -> None:
    abc = CategoricalDistribution(("a", "b", "c"))
    belief = Belief(Domain(abc), at={0.0: 100.0, 1.0: 1.0, 2.0: 1.0})
    known = Arm(0.0, 3, 2.9)
    assert ask(abc, known, near=evidence(v0=(3, 0.97)), belief=belief, formula="puct") == 0.0
    assert ask(abc, known, near=evidence(v0=(3, 0.97)), belief=belief, formula="uct") != 0.0


def test_rave_is_the_published_schedule() -> None:
    elsewhere = evidence(v0=(20, 0.9))
    b = 0.5
    for n, own in ((1, 0.2), (4, 0.3), (20, 0.9)):
        beta = 20 / (n + 20 + 4 * b * b * n * 20)
        arm = informed(Arm(0.0, n, n * own), elsewhere, counting(estimate="rave", rave_bias=b))
        assert arm.visits == n
        assert arm.total / n == pytest.approx((1 - beta) * own + beta * 0.9)
    untried = informed(Arm(0.0, 0, 0.0), elsewhere, counting(estimate="rave"))
    assert (untried.visits, untried.total) == (1.0, pytest.approx(0.9))  # beta is 1


def known(means: dict[float, float], deviations: dict[float, float]) -> Any:
    def posterior(values: Any) -> Any:
        return np.array([means[v] for v in values.tolist()]), np.array([deviations[v] for v in values.tolist()])

    return posterior


def test_with_a_model_the_largest_bound_is_taken() -> None:
    abc = CategoricalDistribution(("a", "b", "c"))
    posterior = known({0.0: 0.5, 1.0: 0.0, 2.0: -0.2}, {0.0: 0.1, 1.0: 0.4, 2.0: 1.0})
    assert ask(abc, posterior=posterior, added=0.5) == 0.0
    assert ask(abc, posterior=posterior, added=2.0) == 2.0
    assert ask(abc, posterior=posterior, added=0.5, avoided=0.0) == 2.0
    assert ask(abc, Arm(0.0, 1, 1.0, State.CLOSED), posterior=posterior, added=0.5) == 2.0


def test_a_model_leans_towards_the_prior_until_values_are_known() -> None:
    abc = CategoricalDistribution(("a", "b", "c"))
    flat = known(dict.fromkeys((0.0, 1.0, 2.0), 0.0), dict.fromkeys((0.0, 1.0, 2.0), 1.0))
    belief = Belief(Domain(abc), at={1.0: 4.0})
    assert {ask(abc, posterior=flat, belief=belief, seed=seed) for seed in range(9)} == {1.0}
    worse = known({0.0: 0.0, 1.0: -0.2, 2.0: 0.0}, dict.fromkeys((0.0, 1.0, 2.0), 1.0))
    assert ask(abc, posterior=worse, belief=belief) == 1.0
    assert ask(abc, posterior=worse, belief=belief, near=evidence(v1=(20, 0.5))) != 1.0


def test_trials_outvote_a_prior_over_a_range_too() -> None:
    """No draw from a range has been taken before; the decision has, in many trials."""
    x = FloatDistribution(0, 1)

    def posterior(values: Any) -> Any:
        return np.where(values > 0.5, 0.2, 0.0), np.zeros(len(values))

    belief = Belief(Domain(x), pieces=[4.0, 1.0])
    many = Evidence(np.linspace(0, 1, 200), np.ones(200), np.full(200, 0.5))
    early = [ask(x, posterior=posterior, belief=belief, prior_bias=2.0, seed=seed) for seed in range(20)]
    late = [ask(x, posterior=posterior, belief=belief, prior_bias=2.0, near=many, seed=seed) for seed in range(20)]
    assert np.mean(np.array(late) > 0.5) > np.mean(np.array(early) > 0.5)


def test_a_prior_that_prefers_nothing_changes_nothing_under_a_model() -> None:
    abc = CategoricalDistribution(("a", "b", "c"))
    posterior = known({0.0: 0.0, 1.0: 0.3, 2.0: 0.1}, {0.0: 0.5, 1.0: 0.1, 2.0: 0.3})
    flat = Belief(Domain(abc), at=dict.fromkeys((0.0, 1.0, 2.0), 5.0))
    for seed in range(9):
        alone = ask(abc, posterior=posterior, seed=seed, near=evidence(v1=(3, 0.5)))
        assert ask(abc, posterior=posterior, belief=flat, seed=seed, near=evidence(v1=(3, 0.5))) == alone


def test_with_a_model_numbers_are_drawn_and_the_best_draw_is_taken() -> None:
    x = FloatDistribution(0, 1)

    def posterior(values: Any) -> Any:
        return -np.abs(values - 0.3), np.zeros(len(values))

    many = [ask(x, posterior=posterior, candidates=48, seed=seed) for seed in range(20)]
    assert max(abs(value - 0.3) for value in many) < 0.1
    grid = IntDistribution(0, 19)
    closed = [Arm(float(k), 1, 0.5, State.CLOSED) for k in range(20) if k != 7]
    assert ask(grid, *closed, posterior=posterior) == 7.0
