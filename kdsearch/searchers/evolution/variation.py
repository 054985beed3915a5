"""What a child is made of: crossover and mutation of decisions that may depend on each other.

A child is a proposal by name, not a whole trial: the objective asks for what its branch needs. A decision that it
shares with a parent by name keeps the parent's value; where a re-drawn choice leads into a branch that no parent knew,
the rest is drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from kdsearch.searchers.evolution.seeded import Gene, Genome
from kdsearch.searchers.mcts.domain import Domain, key

Redraw = Callable[[str, Gene, Random], Any]
"""(decision, what the parent took, generator) -> another value."""


def cross(first: Genome, second: Genome, rng: Random) -> Genome:
    """Uniform crossover: what both decided comes from either, with even chances; the rest from whoever decided it."""
    child = dict(first)
    for name, gene in second.items():
        if name not in first or rng.random() < 0.5:
            child[name] = gene
    return child


def mutate(genome: Genome, count: int, redraw: Redraw, rng: Random) -> Genome:
    """The genome with `count` decisions, drawn without replacement, taken anew."""
    child = dict(genome)
    for name in rng.sample(list(genome), min(count, len(genome))):
        child[name] = Gene(genome[name].distribution, redraw(name, genome[name], rng))
    return child


def another(gene: Gene, rng: Random, spread: float | None) -> Any:
    """Another value of the same decision: any other choice; a number near by, or with no `spread` from its range."""
    domain = Domain(gene.distribution)
    old = key(gene.distribution, gene.value)
    if domain.categorical:
        new = rng.choice([value for value in domain.values() if value != old])
    else:
        new = domain.draw(rng) if spread is None else domain.near(old, spread, rng)
        new = domain.untaken(new, {old})
    return gene.distribution.to_external_repr(new)
