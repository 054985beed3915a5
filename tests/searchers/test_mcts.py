"""Monte-Carlo tree search as a sampler: what it proposes is a function of the study and the seed, and it is good."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import Trial, TrialState

from kdsearch import searchers
from kdsearch.searchers import MCTSSampler, Node, tree

from .spaces import WORTH, mixed, proposals, study

optuna.logging.set_verbosity(optuna.logging.ERROR)


def nodes(root: Node) -> list[Node]:
    return [root, *(node for child in root.children for node in nodes(child))]


def test_beats_random_search_on_a_conditional_space() -> None:
    best: dict[str, list[float]] = {"random": [], "mcts": []}
    for name, found in best.items():
        for seed in range(8):
            searched = study(searchers.create(name, seed=seed))
            searched.optimize(mixed, n_trials=60)
            found.append(searched.best_value)
    assert np.mean(best["mcts"]) > np.mean(best["random"]) + 0.03
    assert sum(m > r for m, r in zip(best["mcts"], best["random"], strict=True)) >= 6


def test_spends_its_trials_on_the_good_branch() -> None:
    best, most = max(WORTH, key=lambda loss: WORTH[loss]), []
    for seed in range(4):
        searched = study(MCTSSampler(seed=seed))
        searched.optimize(mixed, n_trials=80)
        most.append(Counter(trial.params["loss"] for trial in searched.trials[40:]).most_common(1)[0][0])
    assert most.count(best) >= 3


def deceptive(trial: Trial) -> float:
    """The best method is the worst but where its own two numbers lie in a fifth of their ranges."""
    method = trial.suggest_categorical("method", ("a", "b", "c"))
    if method == "c":
        off = max(abs(trial.suggest_float(f"c.{name}", 0, 1) - 0.7) for name in "xy")
        return max(0.0, 1.0 - 2.0 * off)
    return {"a": 0.3, "b": 0.4}[method] + 0.1 * trial.suggest_float(f"{method}.x", 0, 1)


def test_finds_a_branch_that_is_good_with_its_own_numbers_only() -> None:
    found: dict[int, list[float]] = {0: [], 6: []}
    for ahead, values in found.items():
        for seed in range(12):
            searched = study(MCTSSampler(seed=seed, ahead=ahead))
            searched.optimize(deceptive, n_trials=50)
            values.append(searched.best_value)
    hits = {ahead: sum(value > 0.8 for value in values) for ahead, values in found.items()}
    assert hits[6] >= 9
    assert hits[0] < hits[6]


def test_a_fresh_sampler_on_the_stored_study_goes_on_as_the_old_one(tmp_path: Path) -> None:
    memory = study(MCTSSampler(seed=5))
    memory.optimize(mixed, n_trials=20)
    url = f"sqlite:///{tmp_path}/study.db"
    stored = study(MCTSSampler(seed=5), storage=url, study_name="s")
    stored.optimize(mixed, n_trials=12)
    resumed = optuna.load_study(study_name="s", storage=url, sampler=MCTSSampler(seed=5))
    resumed.optimize(mixed, n_trials=8)
    assert proposals(resumed) == proposals(memory)
    assert tree(resumed).to_dict() == tree(memory).to_dict()


def test_the_order_in_which_trials_end_does_not_matter() -> None:
    old = MCTSSampler(seed=2)
    studies = [study(old), study(MCTSSampler(seed=2))]
    for searched, step in zip(studies, (1, -1), strict=True):
        for _ in range(4):
            asked = [(trial, mixed(trial)) for trial in (searched.ask() for _ in range(6))]
            for trial, value in asked[::step]:
                searched.tell(trial, value)
    assert proposals(studies[0]) == proposals(studies[1])


def test_samplers_share_no_state_between_studies() -> None:
    shared = MCTSSampler(seed=7)
    first, second = study(shared), study(shared)
    for _ in range(10):
        for searched in (first, second):
            trial = searched.ask()
            searched.tell(trial, mixed(trial))
    alone = study(MCTSSampler(seed=7))
    alone.optimize(mixed, n_trials=10)
    assert proposals(first) == proposals(second) == proposals(alone)


def test_a_copy_through_pickle_proposes_the_same() -> None:
    searched = study(MCTSSampler(seed=3, defaults={"depth": 14}))
    searched.optimize(mixed, n_trials=15)
    searched.sampler = pickle.loads(pickle.dumps(searched.sampler))
    searched.optimize(mixed, n_trials=5)
    straight = study(MCTSSampler(seed=3, defaults={"depth": 14}))
    straight.optimize(mixed, n_trials=20)
    assert proposals(searched) == proposals(straight)


def test_failures_of_the_machine_do_not_count() -> None:
    searched = study(MCTSSampler(seed=0))
    searched.optimize(mixed, n_trials=10)
    before = tree(searched).to_dict()
    for _ in range(5):
        trial = searched.ask()
        mixed(trial)
        searched.tell(trial, state=TrialState.FAIL)
    assert tree(searched).to_dict() == before


def test_a_branch_that_always_fails_is_left() -> None:
    def objective(trial: Trial) -> float:
        if trial.suggest_categorical("way", ("good", "bad")) == "bad":
            trial.suggest_float("x", 0, 1)
            raise optuna.TrialPruned
        return trial.suggest_float("y", 0, 1)

    searched = study(MCTSSampler(seed=0))
    searched.optimize(objective, n_trials=80)
    assert sum(trial.params["way"] == "bad" for trial in searched.trials) <= 10


def test_running_trials_are_virtual_losses() -> None:
    def ask_many(loss: float) -> Counter[str]:
        searched = study(MCTSSampler(seed=0, virtual_loss=loss, estimate="prior", local=0.0, sharing=0.0))
        for way, value in zip("abcd", (0.9, 0.8, 0.7, 0.6), strict=True):
            for _ in range(3):
                searched.enqueue_trial({"way": way})
                trial = searched.ask()
                trial.suggest_categorical("way", tuple("abcd"))
                trial.suggest_float("x", 0, 1)
                searched.tell(trial, value)
        return Counter(trial.suggest_categorical("way", tuple("abcd")) for trial in (searched.ask() for _ in range(8)))

    spread, hopeful = ask_many(1.0), ask_many(0.0)
    assert len(spread) >= 3
    assert max(spread.values()) < max(hopeful.values())


def test_workers_that_ask_at_the_same_time_go_different_ways() -> None:
    searched = study(MCTSSampler(seed=0))
    for trial in [searched.ask() for _ in range(16)]:
        mixed(trial)
    asked = [tuple(params.items()) for params in proposals(searched)]
    assert len(set(asked)) == 16
    assert Counter(params["loss"] for params in proposals(searched)).most_common()[0][1] <= 5


def test_interleaved_asks_get_valid_answers() -> None:
    searched = study(MCTSSampler(seed=0))
    a, b = searched.ask(), searched.ask()
    xs = [a.suggest_float("x", 0, 1), b.suggest_float("x", 0, 1)]
    ys = [b.suggest_int("y", 0, 99), a.suggest_int("y", 0, 99)]
    assert xs[0] != xs[1]
    assert all(0 <= y <= 99 for y in ys)
    searched.tell(b, 1.0)
    searched.tell(a, 2.0)
    assert tree(searched).visits == 2


@pytest.mark.parametrize("local", [0.0, 1.0])
def test_a_proposal_is_of_the_study_as_it_stood_when_the_trial_began(local: float) -> None:
    """Others ask, suggest and end between a trial's decisions."""
    names = [f"x{k}" for k in range(6)]

    def started() -> tuple[optuna.Study, Trial]:
        searched = study(MCTSSampler(seed=3, local=local))
        searched.optimize(lambda trial: sum(trial.suggest_float(name, 0, 1) for name in names), n_trials=30)
        return searched, searched.ask()

    _, alone = started()
    expected = [alone.suggest_float(name, 0, 1) for name in names]
    searched, trial = started()
    got = []
    for name in names:
        got.append(trial.suggest_float(name, 0, 1))
        other = searched.ask()
        searched.tell(other, 100.0 + sum(other.suggest_float(each, 0, 1) for each in names))
    assert got == expected


@pytest.mark.parametrize(("widening", "growth"), [(1.0, 0.5), (2.0, 0.4)])
def test_widening_is_bounded(widening: float, growth: float) -> None:
    def objective(trial: Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_int("y", 0, 1000)
        return -abs(x - 0.3) - abs(y - 400) / 1000 - trial.suggest_float("z", 0, 1)

    searched = study(MCTSSampler(seed=0, estimate="prior", local=0.0, widening=widening, growth=growth))
    searched.optimize(objective, n_trials=150)
    inner = [node for node in nodes(tree(searched)) if node.children and node.children[0].name in ("x", "y")]
    assert len(inner) > 5
    for node in inner:
        assert len(node.children) <= math.ceil(widening * node.visits**growth)
    assert len(tree(searched).children) == math.ceil(widening * 150**growth)


def test_no_path_is_walked_twice_before_all_are() -> None:
    def objective(trial: Trial) -> float:
        if trial.suggest_categorical("kind", ("a", "b")) == "a":
            return float(trial.suggest_int("n", 1, 3))
        return float(trial.suggest_int("m", 1, 12, step=1) + trial.suggest_categorical("flag", (False, True)))

    searched = study(MCTSSampler(seed=0))
    searched.optimize(objective, n_trials=27)
    assert len({tuple(params.items()) for params in proposals(searched)}) == 27
    searched.optimize(objective, n_trials=5)  # nothing new is left; it still answers
    assert len(searched.trials) == 32


def test_published_defaults_are_the_first_children() -> None:
    defaults = {"loss": "at", "at.weight": 3.0, "dkd.alpha": 0.5, "depth": 14, "absent": 1, "width": "wide"}
    searched = study(MCTSSampler(seed=4, defaults=defaults))
    searched.optimize(mixed, n_trials=40)
    first: dict[str, object] = {}
    for params in proposals(searched):
        for name, value in params.items():
            first.setdefault(name, value)
    assert {name: first[name] for name in ("loss", "at.weight", "dkd.alpha", "depth")} == {
        "loss": "at",
        "at.weight": 3.0,
        "dkd.alpha": 0.5,
        "depth": 14,
    }


def test_priors_order_the_untried_choices() -> None:
    first: Counter[str] = Counter()
    for seed in range(60):
        searched = study(MCTSSampler(seed=seed, priors={"loss": {"dkd": 20, "none": 0}}))
        first[searched.ask().suggest_categorical("loss", tuple(WORTH))] += 1
    assert first["none"] == 0
    assert first["dkd"] > 40


def test_under_hyperband_each_bracket_is_its_own_tree() -> None:
    def objective(trial: Trial) -> float:
        value = mixed(trial)
        for step in range(1, 10):
            trial.report(value * step / 9, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    runs = []
    for _ in range(2):
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3)
        searched = study(MCTSSampler(seed=0), pruner=pruner, study_name="same")
        searched.optimize(objective, n_trials=30)
        runs.append(proposals(searched))
    assert runs[0] == runs[1]


def test_choices_of_any_type() -> None:
    searched = study(MCTSSampler(seed=0, defaults={"c": None}))
    searched.optimize(lambda t: float(t.suggest_categorical("c", (True, 1.5, None, "1")) is None), n_trials=4)
    assert searched.trials[0].params["c"] is None
    assert {node.value for node in tree(searched).children} == {True, 1.5, None, "1"}
