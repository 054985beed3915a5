"""Decomposed distillers as methods: what joins unequal models, what is refused, the tree's leaves and the presets."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from kdsearch import kd_methods
from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import METHODS, Batch, ModelSpec, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.decomposed.candidate import rule
from kdsearch.kd_methods.decomposed.joining import JoinedStages, Way, tried, way
from kdsearch.kd_methods.features.autokd import DISTANCES, RELATIONS, SCALES
from kdsearch.kd_methods.method import KDMethod
from kdsearch.runs.objective import Objective
from kdsearch.search_space.reading import presets
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

from .feature_shapes import PAIRS, holds_for_odd_batches, holds_in_every_format
from .feature_signals import CLASSES, batch_of, data, learns, leaves, map_stage, model, signals
from .logit_hazards import assert_finite, hazards

NAMES = ("autokd", "autokd_logits", "kdzero_embedding", "kdzero_features", "kdzero_logits")
FIXED: dict[str, Any] = {
    "student": {"cnn": {"channels": 4, "stages": 3}},
    "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5.0e-4}},
}
PATHS: list[dict[str, Any]] = [
    {},
    {"relation": "batch"},
    {"relation": "channel", "distance": "kl", "scale": "multi_scale"},
    {"attention": True, "scale": "multi_scale"},
    {"attention": True, "scale": "local", "relation": "channel"},
    {"scale": "local", "relation": "channel", "distance": "kl"},
]
CHAINS: list[dict[str, Any]] = [
    {},
    {"first": "batch_gram", "second": "norm_c"},
    {"first": "spatial_attention", "second": "norm_hw"},
    {"first": "channel_attention", "distance": "kl_t1"},
    {"first": "mask", "second": "multi_scale_2", "third": "norm_c", "distance": "l1"},
    {"first": "dropout", "second": "local_2", "third": "softmax_hw", "distance": "smooth_l1"},
    {"first": "channel", "distance": "g_l2"},
    {"first": "batch_norm", "second": "sigmoid", "distance": "pearson"},
]


def test_sizes_that_agree_by_chance_are_no_reason_to_compare() -> None:
    """64 x 8 x 8 and 256 x 4 x 4 are as many numbers, of other channels and places."""
    after, measure = rule(("batch", "identity", "identity"), "l2")
    student, teacher = (4, 64, 8, 8), (4, 256, 4, 4)
    found = way(student, teacher, after)
    assert found == Way(resized=True, connected=True)
    tried(measure, *found(student, teacher))


def bound(name: str, student: ModelSpec, teacher: ModelSpec, **hyper: Any) -> KDMethod:
    torch.manual_seed(0)
    method = kd_methods.create(name, **hyper)
    method.parts = method.bind(student, teacher, data())
    return method


@pytest.mark.parametrize("pair", list(PAIRS))
@pytest.mark.parametrize(
    ("name", "hyper"), [*(("autokd", p) for p in PATHS), *(("kdzero_features", c) for c in CHAINS)]
)
def test_formats_and_odd_batches(name: str, hyper: dict[str, Any], pair: str) -> None:
    holds_in_every_format(lambda s, t: bound(name, s, t, **hyper), pair)
    holds_for_odd_batches(lambda s, t: bound(name, s, t, **hyper), pair)


@pytest.mark.parametrize("name", ["autokd", "kdzero_features", "kdzero_embedding", "kdzero_logits"])
@pytest.mark.parametrize("pair", ["maps", "from tokens"])
def test_learns(name: str, pair: str) -> None:
    learns(kd_methods.create(name), *PAIRS[pair], steps=25, lr=0.05, optimizer=torch.optim.Adam)


def test_stages_are_joined_only_as_far_as_the_comparison_needs() -> None:
    student, teacher = model([map_stage(4, 8)]), model([map_stage(6, 4)])

    def ways(name: str, **hyper: Any) -> tuple[bool, bool, int]:
        parts = bound(name, student, teacher, **hyper).parts
        assert isinstance(parts, JoinedStages)
        return parts.ways[0].resized, parts.ways[0].connected, sum(p.numel() for p in parts.parameters())

    assert ways("autokd", relation="batch") == (False, False, 0)
    assert ways("autokd", attention=True) == (True, False, 0)
    assert ways("autokd", relation="channel")[:2] == (False, True)
    assert ways("autokd")[:2] == (True, True)
    assert ways("kdzero_features", first="batch_gram") == (False, False, 0)
    assert ways("kdzero_features", first="channel_attention")[:2] == (False, True)
    assert ways("kdzero_features", first="spatial_attention") == (True, False, 0)
    assert ways("kdzero_features")[2] > 0
    same = bound("kdzero_features", student, student).parts
    assert list(same.parameters()) == []


def test_a_pair_of_unequal_widths_is_what_the_function_gives_after_joining() -> None:
    student, teacher = model([map_stage(4, 8)]), model([map_stage(6, 4)])
    s, t = signals(student, 3, 1, trained=True), signals(teacher, 3, 2)
    method = bound("autokd", student, teacher, attention=True)
    torch.testing.assert_close(method.loss(s, t, batch_of(3)), KF.at(s.features, t.features))
    method = bound("kdzero_features", student, teacher, first="batch_gram", second="norm_c")
    torch.testing.assert_close(method.loss(s, t, batch_of(3)), KF.sp(s.features, t.features))


def test_what_is_drawn_comes_from_the_batch() -> None:
    student, teacher = PAIRS["equal"]
    method = bound("kdzero_features", student, teacher, first="mask")
    s, t = signals(student, 4, 1), signals(teacher, 4, 2)
    a, b, c = (method.loss(s, t, batch_of(4, seed=k)) for k in (0, 0, 1))
    assert a == b != c


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("autokd", {"attention": True, "relation": "channel"}, "nothing is left to compare"),
    ("autokd", {"scale": "local", "relation": "batch"}, "relation must be 'channel', not 'batch'"),
    ("autokd", {"relation": "global", "distance": "kl"}, "distance cannot be 'kl'"),
    ("kdzero_features", {"first": "batch", "second": "mask"}, "'mask' takes maps, and is given vectors"),
    ("kdzero_features", {"distance": "kl_raw"}, "gives numbers below zero"),
    ("kdzero_features", {"first": "spatial_attention", "distance": "pearson"}, "nothing is left to compare"),
    ("kdzero_features", {"first": "channel_attention", "second": "norm_hw"}, "nothing is left to compare"),
    ("kdzero_embedding", {"first": "batch_gram", "second": "log_softmax_c", "distance": "kl_raw"}, "below zero"),
    ("autokd_logits", {"knowledge": "target", "distance": "pearson"}, "correlate by ±1"),
]


@pytest.mark.parametrize(("name", "hyper", "why"), INVALID)
def test_what_measures_nothing_is_invalid(name: str, hyper: dict[str, Any], why: str) -> None:
    student, teacher = PAIRS["maps"]
    with pytest.raises(ValueError, match=why):
        bound(name, student, teacher, **hyper)
    recipe = Recipe.from_dict({"student": "cnn", METHODS[name].slot: {"method": name, **hyper}})
    with pytest.raises(TrialFailure, match=why) as caught:
        Objective(recipe, student, {"teacher": teacher}, data())
    assert caught.value.reason == "invalid"


def test_binding_draws_nothing_from_the_common_generator() -> None:
    """Recipes share the student's random stream: trying a chain must not move it."""
    student, _ = PAIRS["equal"]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name, hyper in (
        ("autokd", {}),
        ("kdzero_features", {"first": "mask"}),
        ("kdzero_logits", {"first": "dropout"}),
    ):
        kd_methods.create(name, **hyper).bind(student, student, data())
    assert torch.equal(torch.get_rng_state(), before)


def test_too_few_classes() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="needs at least 4 classes, not 3"):
        KF.autokd_logits(logits, logits, torch.zeros(4, dtype=torch.long), knowledge="non_target", distance="pearson")
    with pytest.raises(ValueError, match="needs at least 3 classes, not 2"):
        KF.autokd_logits(logits[:, :2], logits[:, :2], torch.zeros(4, dtype=torch.long), knowledge="non_target")
    with pytest.raises(ValueError, match="autokd_logits knows kl, pearson, not 'l2'"):
        KF.autokd_logits(logits, logits, torch.zeros(4, dtype=torch.long), distance="l2")
    with pytest.raises(ValueError, match="autokd knows whole, multi_scale, local, not 'half'"):
        KF.autokd([logits[..., None, None]], [logits[..., None, None]], scale="half")
    blind = model([map_stage(4, 4)], embedding=None)
    with pytest.raises(ValueError, match="must both have one"):
        bound("kdzero_embedding", blind, blind)


@hazards
@pytest.mark.parametrize("distance", ["kl", "pearson"])
@pytest.mark.parametrize("knowledge", ["plain", "target", "non_target", "intra"])
def test_logits_stay_finite(knowledge: str, distance: str, hazard: str) -> None:
    if (knowledge, distance) == ("target", "pearson"):
        return
    if hazard == "two_classes" and (distance == "pearson" or knowledge == "non_target") and knowledge != "intra":
        return
    assert_finite(
        lambda s, t, y: KF.autokd_logits(s, t, y, knowledge=knowledge, distance=distance, temperature=1.0), hazard
    )


def test_a_temperature_policy_softens() -> None:
    method = kd_methods.create("autokd_logits", temperature=2.0)
    s, t = (torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    batch: Batch = batch_of(4)
    torch.testing.assert_close(method.loss(Signals(s), Signals(t), batch), KF.kd(s, t, temperature=2.0))
    policy = kd_methods.create("logit_std")
    batch.soften = policy.soften  # type: ignore[attr-defined]
    soft = policy.soften(s, t, batch)  # type: ignore[attr-defined]
    expected = KF.kd(soft.student, soft.teacher, temperature=soft.temperature)
    torch.testing.assert_close(method.loss(Signals(s), Signals(t), batch), expected)


def tree() -> dict[str, dict[str, Any]]:
    """Every recipe of the preset, by its hash, with the answers that lead to it."""
    space = SearchSpace.from_dict({"preset": "autokd", **FIXED})
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
    found: dict[str, dict[str, Any]] = {}

    def objective(trial: optuna.Trial) -> float:
        recipe = space.suggest(trial)
        assert space.params_of(recipe) == trial.params
        found[recipe.hash] = {"recipe": recipe, **trial.params}
        return 0.0

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study.optimize(objective)
    assert len(study.trials) == len(found)
    assert space.size() == (len(found), 0)
    return found


def test_the_preset_is_the_published_tree_of_24_leaves() -> None:
    """Attention or not, times: patches by two distances; one scale or several, global by l2, batch and channel by
    two.
    """
    found = [entry for entry in tree().values() if "features" in entry["recipe"].terms]
    assert len(found) == 24
    spelt = {
        tuple(entry["recipe"].terms["features"].hyper[key] for key in ("attention", "scale", "relation", "distance"))
        for entry in found
    }
    both = [(s, r, d) for s, r, d in product(SCALES[:2], RELATIONS, DISTANCES) if (r, d) != ("global", "kl")]
    paths = [*both, ("local", "channel", "l2"), ("local", "channel", "kl")]
    assert spelt == {(attention, *path) for attention in (False, True) for path in paths}
    asked = {tuple(sorted(key.rpartition(".")[2] for key in entry if key.startswith("features."))) for entry in found}
    assert asked == {
        ("attention", "relation", "scale"),  # global is by l2
        ("attention", "distance", "scale"),  # patches are channels
        ("attention", "distance", "relation", "scale"),
    }
    recipe = found[0]["recipe"]
    assert (recipe.ce_weight, recipe.terms["features"].hyper["weight"], recipe.pairing) == (1.0, 100.0, "0.65>0.65")


def test_all_but_two_of_the_leaves_measure_something() -> None:
    student, teacher = model([map_stage(4, 8)]), model([map_stage(6, 4)])
    refused = []
    for entry in tree().values():
        node = entry["recipe"].terms.get("features")
        if node is None:
            continue
        try:
            method = bound("autokd", student, teacher, **node.hyper)
        except ValueError:
            refused.append(
                (node.hyper["attention"], node.hyper["scale"], node.hyper["relation"], node.hyper["distance"])
            )
            continue
        s, t = signals(student, 4, 1, trained=True), signals(teacher, 4, 2)
        (gradient,) = torch.autograd.grad(method.loss(s, t, batch_of(4)), leaves(s)[1])
        assert gradient.abs().max() > 0
    assert sorted(refused) == [(True, "multi_scale", "channel", "l2"), (True, "whole", "channel", "l2")]


def test_the_hint_layer_is_the_second_of_three_stages() -> None:
    from kdsearch.kd_methods.tap import probe
    from kdsearch.search_space.pairing import pair
    from kdsearch.search_space.students.family import STUDENTS

    spec = probe(STUDENTS["resnet"](depth=20).build((3, 32, 32), 10), (3, 32, 32))
    (own,), (theirs,) = pair(spec.stages, spec.stages, "0.65>0.65", spatial=True)
    assert own == theirs
    assert (spec.stages[own].channels, spec.stages[own].size) == (32, (16, 16))


def test_kdzeros_preset() -> None:
    space = SearchSpace.from_dict({"preset": "kdzero", **FIXED})
    on_maps, on_vectors = 40**3 * 11 * 5, 26**3 * 11 * 5
    assert space.size() == (1 + on_maps + 2 * on_vectors, 0)
    for seed in range(40):
        recipe = space.sample(seed)
        assert len(recipe.terms) <= 1
        assert recipe.ce_weight == 1.0
        assert space.params_of(recipe) is not None


def test_presets_are_read_by_name_and_overridden() -> None:
    assert presets() == ["autokd", "kdzero"]
    space = SearchSpace.from_dict({"preset": "autokd", **FIXED, "features": {"autokd": {"weight": [1, 100]}}})
    assert space.size() == (25, 1)
    assert SearchSpace.from_dict(space.to_dict()).to_dict() == space.to_dict()
    with pytest.raises(ValueError, match=r"space\.preset cannot be 'autkd'; did you mean 'autokd'"):
        SearchSpace.from_dict({"preset": "autkd"})
    packaged = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert "search_space/presets/*.yaml" in packaged


def test_spaces_that_do_not_name_them_leave_them_out() -> None:
    whole = SearchSpace.from_dict()
    assert not set(NAMES) & {name for entries in whole.options.values() for name in entries}
    named = SearchSpace.from_dict({"features": ["at", "autokd", "kdzero_features"], **FIXED})
    assert {"none", "at", "autokd", "kdzero_features"} == set(named.options["features"])
    found = {named.sample(seed).terms["features"].name for seed in range(60) if "features" in named.sample(seed).terms}
    assert found == {"at", "autokd", "kdzero_features"}


def test_the_example_is_a_config_of_the_published_parts() -> None:
    from kdsearch.runs import config_file

    path = Path(__file__).parents[2] / "examples" / "autokd.yaml"
    config = config_file.read(path)
    assert (config.searcher.name, config.metric) == ("autokd", "autokd")
    assert SearchSpace.from_dict(config.space).size() == (25, 0)
    other = config_file.read(path, ["space.preset=kdzero", "searcher.name=kdzero"])
    assert "kdzero_features" in SearchSpace.from_dict(other.space).options["features"]
