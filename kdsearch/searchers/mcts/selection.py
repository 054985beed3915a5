"""Which value a trial takes at a node: the best by a model; or UCT among what is there, widening of what is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.evidence import Arm, Evidence, State
from kdsearch.searchers.mcts.priors import Belief

Floats = NDArray[np.float64]
Posterior = Callable[[Floats], tuple[Floats, Floats]]

HEARSAY = 0.25
"""Share of the usual prior visits that a value gets of trials that began otherwise."""


@dataclass(frozen=True)
class Question:
    """One decision to take, and what is known.

    Attributes:
        here: values taken after the same decisions, by value.
        near: what values were worth in trials that began alike.
        anywhere: what they were worth in all trials.
        first: tried before any other untried value, a published default say.
        belief: priors of the values.
        posterior: of a model: mean and standard deviation of values.
        ahead: of a model: bounds of what values alone lead to.
        added: how many of those standard deviations are added to the mean.
        avoided: a value that is taken only where there is no other.
    """

    domain: Domain
    here: Mapping[float, Arm]
    near: Evidence
    anywhere: Evidence
    first: float | None = None
    belief: Belief | None = None
    posterior: Posterior | None = None
    ahead: Callable[[Floats], Floats] | None = None
    added: float = 1.0
    avoided: float | None = None


def listed(domain: Domain, options: MCTS) -> bool:
    """Whether every value of a domain competes from the start, or new ones join as visits grow."""
    return domain.categorical or domain.size <= options.listed


def choose(question: Question, options: MCTS, rng: Random) -> float:
    """The value to take. Values outside the domain, from a range that was another one earlier, play no part."""
    domain = question.domain
    asked = replace(
        question,
        here={value: arm for value, arm in question.here.items() if domain.contains(value)},
        near=question.near.only(domain.within(question.near.values)),
        anywhere=question.anywhere.only(domain.within(question.anywhere.values)),
        first=question.first if question.first is not None and domain.contains(question.first) else None,
    )
    if asked.posterior is not None:
        return modelled(asked, asked.posterior, options, rng)
    if listed(domain, options):
        return _listed(asked, options, rng)
    return _widened(asked, options, rng)


def modelled(asked: Question, posterior: Posterior, options: MCTS, rng: Random) -> float:
    """The value with the largest posterior mean + optimism · standard deviation + bias, there or further on.

    The model takes what is still undecided as good trials decided it. That it could be decided better yet counts as
    `doubt` / (1 + n) more variance, where n trials took the value. A prior takes bias · (1 - weight) / (1 + n̄) away,
    where the heaviest value weighs 1 and n̄ are the trials that took the decision, over the values in question: equal
    weights change nothing, and what trials say outvotes any. Source: Tesauro et al., Bayesian inference in Monte-Carlo
    tree search, UAI 2010; progressive bias: Chaslot et al., New Mathematics and Natural Computation 2008.
    """
    if asked.first is not None and asked.first not in asked.anywhere and asked.first not in asked.here:
        return asked.first
    values = _candidates(asked, options, rng)
    means, deviations = posterior(np.array(values))
    visits = np.array([asked.anywhere.about(value)[0] for value in values])
    scores = means + asked.added * np.sqrt(np.square(deviations) + options.doubt / (1.0 + visits))
    if asked.ahead is not None and listed(asked.domain, options):
        scores = np.maximum(scores, asked.ahead(np.array(values)))
    if asked.belief is not None and options.prior_bias:
        weights = np.array([asked.belief.weight(value) for value in values])
        unlikely = 1.0 - weights / max(1e-12, weights.max())
        taken = float(asked.anywhere.visits.sum()) / len(values)
        scores = scores - options.prior_bias * unlikely / (1.0 + taken)
    return max((score, rng.random(), value) for score, value in zip(scores.tolist(), values, strict=True))[2]


def _candidates(asked: Question, options: MCTS, rng: Random) -> list[float]:
    """What a model chooses from: all values that have something left to find, or draws from the range."""
    domain = asked.domain
    if listed(domain, options):
        arms = [asked.here.get(value, Arm(value, 0.0, 0.0)) for value in domain.values()]
        values = [arm.value for arm in _live(arms)]
        return [value for value in values if value != asked.avoided] or values
    if len(asked.here) >= domain.size:
        return [arm.value for arm in _live(list(asked.here.values()))]
    draw = asked.belief.draw if asked.belief is not None else domain.draw
    gone = {value for value, arm in asked.here.items() if arm.state != State.OPEN}
    values = [draw(rng) for _ in range(options.candidates)]
    if asked.avoided is not None:
        values[::2] = [domain.near(asked.avoided, options.spread, rng) for _ in values[::2]]
    if asked.first is not None:
        values.append(asked.first)
    return sorted({domain.untaken(value, set(asked.here)) if value in gone else value for value in values})


def best(arms: Iterable[Arm], exploration: float, rng: Random, priors: Callable[[float], float] | None = None) -> float:
    """The value with the largest mean + exploration · √(ln N / n); N sums the visits n > 0 of all arms.

    With priors, PUCT: mean + exploration · P · √N / (1 + n), where P is the share of a value in all weights and a
    value without visits has the mean of the others. Equals are told apart by chance. Source: Kocsis and Szepesvári,
    ECML 2006 (UCT); Silver et al., Nature 2017 (PUCT); rewards in [0, 1].
    """
    arms = list(arms)
    visits = sum(arm.visits for arm in arms)
    if priors is not None:
        average = sum(arm.total for arm in arms) / visits if visits else 0.0
        weights = [priors(arm.value) for arm in arms]
        shares = [w / sum(weights) if any(weights) else 1.0 / len(arms) for w in weights]
        bounds = [
            exploration * share * math.sqrt(visits) / (1.0 + a.visits) for share, a in zip(shares, arms, strict=True)
        ]
        means = [arm.total / arm.visits if arm.visits else average for arm in arms]
    else:
        log_all = math.log(max(1.0, visits))
        bounds = [exploration * math.sqrt(log_all / arm.visits) for arm in arms]
        means = [arm.total / arm.visits for arm in arms]
    scored = [(mean + bound, rng.random(), arm.value) for mean, bound, arm in zip(means, bounds, arms, strict=True)]
    return max(scored)[2]


def informed(arm: Arm, evidence: Evidence, options: MCTS, share: float = 1.0) -> Arm:
    """The arm with what its value earned elsewhere, by one of two rules.

    prior: up to `sharing` more visits of the mean reward elsewhere. They matter at a young node and are outvoted
    later. Source: prior visits, Gelly and Silver, ICML 2007, section 5.

    rave: the mean is (1 - β) · own + β · all moves as first, β = ñ / (n + ñ + 4 b² n ñ), where ñ visits are all that
    took the value, here or elsewhere. An untried value counts as one visit. Source: Gelly and Silver, Artificial
    Intelligence 2011, section 4.3.

    Args:
        share: of `sharing` for evidence that is less to the point.
    """
    visits, total = evidence.about(arm.value)
    if options.estimate == "rave":
        if not visits or not options.sharing:
            return arm
        n = arm.visits
        beta = visits / (n + visits + 4 * options.rave_bias**2 * n * visits)
        own = arm.total / n if n else 0.0
        return Arm(arm.value, max(n, 1.0), max(n, 1.0) * ((1 - beta) * own + beta * total / visits), arm.state)
    elsewhere = visits - arm.visits
    if elsewhere <= 0:
        return arm
    borrowed = min(options.sharing * share, elsewhere)
    gained = borrowed * max(0.0, total - arm.total) / elsewhere
    return Arm(arm.value, arm.visits + borrowed, arm.total + gained, arm.state)


def allowed(arms: Iterable[Arm], options: MCTS) -> int:
    """How many values may compete at a node with these visits: widening · n^growth, at least one."""
    return max(1, math.ceil(options.widening * sum(arm.visits for arm in arms) ** options.growth))


def _listed(asked: Question, options: MCTS, rng: Random) -> float:
    """Every value is there from the start. First those of which nothing is known, then UCT.

    A value that no trial like this one has taken borrows little from trials unlike it, which puts it in front of the
    tried ones, in the order of its promise.
    """

    def known(value: float) -> Arm:
        arm = asked.here.get(value, Arm(value, 0.0, 0.0))
        if value in asked.near:
            return informed(arm, asked.near, options)
        return informed(arm, asked.anywhere, options, HEARSAY)

    arms = [known(value) for value in asked.domain.values()]
    if asked.avoided is not None:
        arms = [arm for arm in arms if arm.value != asked.avoided] or arms
    untried = [arm.value for arm in arms if not arm.visits]
    priors = _priors(asked, options)
    if not untried or (priors is not None and len(untried) < len(arms)):
        return best(_live(arms), options.exploration, rng, priors)
    if asked.first is not None and asked.first in untried:
        return asked.first
    weights = [asked.belief.weight(value) for value in untried] if asked.belief else []
    return rng.choices(untried, weights if any(weights) else None)[0]


def _widened(asked: Question, options: MCTS, rng: Random) -> float:
    """After n visits, widening · n^growth values compete. One with nothing left to find makes room for another."""
    arms = list(asked.here.values())
    open_arms = [arm for arm in arms if arm.state == State.OPEN]
    if open_arms and len(open_arms) >= allowed(arms, options):
        known = [informed(arm, asked.near, options) for arm in open_arms]
        return best(known, options.exploration, rng, _priors(asked, options))
    if len(arms) >= asked.domain.size:
        return best(_live(arms), options.exploration, rng, _priors(asked, options))
    if asked.first is not None and asked.first not in asked.here and asked.first not in asked.near:
        return asked.first
    if not len(asked.near.values) or rng.random() < options.prior_share:
        value = asked.belief.draw(rng) if asked.belief is not None else asked.domain.draw(rng)
    else:
        value = asked.domain.near(float(rng.choice(asked.near.good())), options.spread, rng)
    return asked.domain.untaken(value, set(asked.here))


def _priors(asked: Question, options: MCTS) -> Callable[[float], float] | None:
    """Weights for PUCT; None for UCT."""
    if options.formula != "puct":
        return None
    return asked.belief.weight if asked.belief is not None else lambda value: 1.0


def _live(arms: Sequence[Arm]) -> Sequence[Arm]:
    """The arms behind which something is left to find; where nothing is, those that are being looked at; else all."""
    for state in (State.OPEN, State.BUSY):
        found = [arm for arm in arms if arm.state == state]
        if found:
            return found
    return arms
