"""Which value a trial takes at a node: UCT among what is there, progressive widening of what is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from random import Random

from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.history import Arm, State


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


def choose(
    domain: Domain,
    here: Mapping[float, Arm],
    overall: Mapping[float, Arm],
    options: MCTS,
    rng: Random,
    first: float | None = None,
    weight: Callable[[float], float] | None = None,
) -> float:
    """The value to take for one decision.

    Args:
        here: values taken after the same decisions.
        overall: values taken anywhere in the tree, those included.
        first: tried before any other value that nobody has tried, a published default say.
        weight: of a choice, in the draw of the next untried one.
    """
    here = {value: arm for value, arm in here.items() if domain.contains(value)}
    overall = {value: arm for value, arm in overall.items() if domain.contains(value)} if options.sharing else {}
    first = first if first is not None and domain.contains(first) else None
    if domain.categorical or domain.size <= options.listed:
        return _listed(domain, here, overall, options, rng, first, weight)
    return _widened(domain, here, overall, options, rng, first)


def _listed(
    domain: Domain,
    here: Mapping[float, Arm],
    overall: Mapping[float, Arm],
    options: MCTS,
    rng: Random,
    first: float | None,
    weight: Callable[[float], float] | None,
) -> float:
    """Every value is there from the start. First those of which nothing is known, then UCT."""
    arms = [informed(here.get(value, Arm(value, 0.0, 0.0)), overall, options.sharing) for value in domain.values()]
    untried = [arm.value for arm in arms if not arm.visits]
    if untried:
        if first in untried:
            return first  # type: ignore[return-value]
        weights = [weight(value) for value in untried] if weight else None
        return rng.choices(untried, weights)[0]
    return best(_live(arms), options.exploration, rng)


def _widened(
    domain: Domain,
    here: Mapping[float, Arm],
    overall: Mapping[float, Arm],
    options: MCTS,
    rng: Random,
    first: float | None,
) -> float:
    """After n visits, widening · n^growth values compete. Those with nothing left to find make room for others."""
    arms = list(here.values())
    open_arms = [arm for arm in arms if arm.state == State.OPEN]
    if open_arms and len(open_arms) >= allowed(arms, options):
        return best([informed(arm, overall, options.sharing) for arm in open_arms], options.exploration, rng)
    if len(arms) >= domain.size:
        return best(_live(arms), options.exploration, rng)
    if first is not None and first not in here and first not in overall:
        return first
    elsewhere = [arm for arm in overall.values() if arm.value not in here]
    if elsewhere and len(overall) >= allowed(overall.values(), options):
        return best(elsewhere, options.exploration, rng)
    return _new(domain, here, overall, options, rng)


def allowed(arms: Iterable[Arm], options: MCTS) -> int:
    """How many values may compete at a node with these visits."""
    visits = sum(arm.visits for arm in arms)
    return max(1, math.ceil(options.widening * visits**options.growth))


def informed(arm: Arm, overall: Mapping[float, Arm], sharing: float) -> Arm:
    """The arm with up to `sharing` more visits of the mean reward its value earned elsewhere in the tree.

    They matter at a young node and are outvoted later. Source: prior visits, Gelly and Silver, ICML 2007, section 5.
    """
    anywhere = overall.get(arm.value)
    if anywhere is None or anywhere.visits <= arm.visits:
        return arm
    visits = anywhere.visits - arm.visits
    borrowed = min(sharing, visits)
    mean = (anywhere.total - arm.total) / visits
    return Arm(arm.value, arm.visits + borrowed, arm.total + borrowed * mean, arm.state)


def _live(arms: list[Arm]) -> list[Arm]:
    """The arms behind which something is left to find; where nothing is, those that are being looked at; else all."""
    for state in (State.OPEN, State.BUSY):
        found = [arm for arm in arms if arm.state == state]
        if found:
            return found
    return arms


def _new(
    domain: Domain, here: Mapping[float, Arm], overall: Mapping[float, Arm], options: MCTS, rng: Random
) -> float:
    """A value nobody has taken after these decisions: from the whole range, or near one that did well."""
    pool = list({**overall, **here}.values())
    if not pool or rng.random() < options.prior_share:
        value = domain.draw(rng)
    else:
        pool.sort(key=lambda arm: (-arm.total / arm.visits, arm.value))
        good = pool[: max(1, len(pool) // 4)]
        value = domain.near(rng.choice(good).value, options.spread, rng)
    return domain.untaken(value, set(here))
