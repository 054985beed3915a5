"""Which value a trial takes at a node: UCT among what is there, progressive widening of what is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.evidence import Arm, Evidence, State

HEARSAY = 0.25
"""Share of the usual prior visits that a value gets of trials that began otherwise."""


@dataclass(frozen=True)
class Question:
    """One decision to take, and what is known.

    Attributes:
        here: values taken after the same decisions, by value.
        near: what values were worth in trials that began alike.
        anywhere: what they were worth in all trials; read for listed domains only.
        first: tried before any other untried value, a published default say.
        weight: of a choice in the draw of the next untried one.
    """

    domain: Domain
    here: Mapping[float, Arm]
    near: Evidence
    anywhere: Evidence
    first: float | None = None
    weight: Callable[[float], float] | None = None


def listed(domain: Domain, options: MCTS) -> bool:
    """Whether every value of a domain competes from the start, or new ones join as visits grow."""
    return domain.categorical or domain.size <= options.listed


def choose(question: Question, options: MCTS, rng: Random) -> float:
    """The value to take. Values outside the domain, from a range that was another one earlier, play no part."""
    domain = question.domain
    asked = Question(
        domain,
        {value: arm for value, arm in question.here.items() if domain.contains(value)},
        question.near.only(domain.within(question.near.values)),
        question.anywhere.only(domain.within(question.anywhere.values)),
        question.first if question.first is not None and domain.contains(question.first) else None,
        question.weight,
    )
    if listed(domain, options):
        return _listed(asked, options, rng)
    return _widened(asked, options, rng)


def best(arms: Iterable[Arm], exploration: float, rng: Random) -> float:
    """The value with the largest mean + exploration · √(ln N / n); N sums the visits n > 0 of all arms.

    Equals are told apart by chance. Source: Kocsis and Szepesvári, ECML 2006 (UCT); rewards in [0, 1].
    """
    arms = list(arms)
    log_all = math.log(max(1.0, sum(arm.visits for arm in arms)))
    scored = [
        (arm.total / arm.visits + exploration * math.sqrt(log_all / arm.visits), rng.random(), arm.value)
        for arm in arms
    ]
    return max(scored)[2]


def informed(arm: Arm, evidence: Evidence, sharing: float) -> Arm:
    """The arm with up to `sharing` more visits of the mean reward that its value earned elsewhere.

    They matter at a young node and are outvoted later. Source: prior visits, Gelly and Silver, ICML 2007, section 5.
    """
    visits, total = evidence.about(arm.value)
    elsewhere = visits - arm.visits
    if elsewhere <= 0:
        return arm
    borrowed = min(sharing, elsewhere)
    return Arm(arm.value, arm.visits + borrowed, arm.total + borrowed * (total - arm.total) / elsewhere, arm.state)


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
            return informed(arm, asked.near, options.sharing)
        return informed(arm, asked.anywhere, options.sharing * HEARSAY)

    arms = [known(value) for value in asked.domain.values()]
    untried = [arm.value for arm in arms if not arm.visits]
    if not untried:
        return best(_live(arms), options.exploration, rng)
    if asked.first is not None and asked.first in untried:
        return asked.first
    weights = [asked.weight(value) for value in untried] if asked.weight else []
    return rng.choices(untried, weights if any(weights) else None)[0]


def _widened(asked: Question, options: MCTS, rng: Random) -> float:
    """After n visits, widening · n^growth values compete. One with nothing left to find makes room for another."""
    arms = list(asked.here.values())
    open_arms = [arm for arm in arms if arm.state == State.OPEN]
    if open_arms and len(open_arms) >= allowed(arms, options):
        return best([informed(arm, asked.near, options.sharing) for arm in open_arms], options.exploration, rng)
    if len(arms) >= asked.domain.size:
        return best(_live(arms), options.exploration, rng)
    if asked.first is not None and asked.first not in asked.here and asked.first not in asked.near:
        return asked.first
    if not len(asked.near.values) or rng.random() < options.prior_share:
        value = asked.domain.draw(rng)
    else:
        value = asked.domain.near(float(rng.choice(asked.near.good())), options.spread, rng)
    return asked.domain.untaken(value, set(asked.here))


def _live(arms: Sequence[Arm]) -> Sequence[Arm]:
    """The arms behind which something is left to find; where nothing is, those that are being looked at; else all."""
    for state in (State.OPEN, State.BUSY):
        found = [arm for arm in arms if arm.state == state]
        if found:
            return found
    return arms
