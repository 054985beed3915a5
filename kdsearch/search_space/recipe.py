"""A recipe: everything needed to distil one student. Immutable; YAML in and out; a canonical hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kdsearch.kd_methods import LOSS_SLOTS, METHODS, KDMethod
from kdsearch.kd_methods.strategy import TeachingStrategy
from kdsearch.parameters import Value
from kdsearch.registry import nearest
from kdsearch.search_space.pairing import PAIRINGS, is_policy
from kdsearch.search_space.students.family import STUDENTS
from kdsearch.search_space.students.transforms import TRANSFORMS

NEUTRAL = {
    "temperature": "constant",
    "targets": "labels",
    "teaching": "teacher",
    "schedule": "always",
    "data": "standard",
    "optimizer": "sgd",
}
"""What the slots that are always filled hold when a recipe does not mention them."""


@dataclass(frozen=True)
class Node:
    """A registered name with its hyper-parameters, all of them, checked."""

    name: str
    hyper: Mapping[str, Value] = field(default_factory=dict)

    def to_dict(self, key: str = "method") -> dict[str, Value]:
        return {key: self.name, **self.hyper}


@dataclass(frozen=True)
class Recipe:
    """One path through the space. Build it with `Recipe.from_dict`, which fills in defaults and checks every value."""

    student: Node
    transform: Node
    ce_weight: float
    terms: Mapping[str, Node]
    pairing: str
    policies: Mapping[str, Node]

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Recipe:
        """Read a recipe; what is left out takes its default, or the `preset`'s value where one is named.

        Raises:
            ValueError: unknown slot, name or hyper-parameter, or a value outside its domain; the message starts with
                the place.
        """
        known = ("student", "transform", "ce", *LOSS_SLOTS, *NEUTRAL)
        if "preset" in data:
            data = _with_preset(data)
        unknown = [key for key in data if key not in known]
        if unknown:
            raise ValueError(f"recipe has no slot {unknown[0]!r}; {nearest(unknown[0], known)}")
        if "student" not in data:
            raise ValueError("recipe.student is missing: name a family, such as `student: {family: resnet}`")
        student = _node(data["student"], "student", "family", STUDENTS)
        transform = _node(data.get("transform", "none"), "transform", "method", TRANSFORMS)
        terms: dict[str, Node] = {}
        pairing = PAIRINGS[0]
        for slot in LOSS_SLOTS:
            entry = data.get(slot)
            if entry is None or entry == "none":
                continue
            if slot == "features" and isinstance(entry, Mapping) and "pairing" in entry:
                pairing = entry["pairing"]
                entry = {key: value for key, value in entry.items() if key != "pairing"}
                if not isinstance(pairing, str) or not is_policy(pairing):
                    raise ValueError(f"features.pairing cannot be {pairing!r}; {nearest(pairing, PAIRINGS)}")
            terms[slot] = _method(entry, slot)
        policies = {slot: _method(data.get(slot, neutral), slot) for slot, neutral in NEUTRAL.items()}
        ce = data.get("ce", {})
        if not isinstance(ce, Mapping) or set(ce) - {"weight"}:
            raise ValueError(f"ce holds only a weight, such as `ce: {{weight: 0.1}}`, not {ce!r}")
        published = [METHODS[node.name].ce_weight for node in (*terms.values(), *policies.values())]
        weight = ce.get("weight", min(published, default=1.0))
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ValueError(f"ce.weight must be a number of at least 0, not {weight!r}")
        return Recipe(student, transform, float(weight), terms, pairing, policies)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every value spelt out; `from_dict` reads it back to an equal recipe."""
        out: dict[str, Any] = {"student": self.student.to_dict("family"), "transform": self.transform.to_dict()}
        out["ce"] = {"weight": self.ce_weight}
        for slot, node in self.terms.items():
            out[slot] = node.to_dict()
            if slot == "features":
                out[slot]["pairing"] = self.pairing
        for slot, node in self.policies.items():
            out[slot] = node.to_dict()
        return out

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name the recipe's content; equal recipes have equal hashes."""
        return content_hash(self.to_dict())

    def methods(self) -> Iterator[tuple[str, KDMethod]]:
        """A fresh instance of every method of the recipe, by slot."""
        for slot, node in (*self.terms.items(), *self.policies.items()):
            yield slot, METHODS[node.name](**node.hyper)

    def strategy(self) -> TeachingStrategy:
        """A fresh instance of the recipe's teaching strategy."""
        node = self.policies["teaching"]
        return METHODS[node.name](**node.hyper)  # type: ignore[return-value]

    @property
    def distils(self) -> bool:
        """Whether anything but hard labels teaches the student."""
        teaching = METHODS[self.policies["teaching"].name]
        return bool(
            self.terms
            or self.policies["targets"].name != NEUTRAL["targets"]
            or getattr(teaching, "own_objective", False)
        )

    def without_distillation(self) -> Recipe:
        """The same student, optimiser and cross-entropy, and nothing else: the baseline."""
        # A student that is shown less than the teacher is shown as little without one.
        keep = {"optimizer"} | {s for s, n in self.policies.items() if METHODS[n.name].student_view}
        policies = {s: n if s in keep else _method(NEUTRAL[s], s) for s, n in self.policies.items()}
        return replace(self, ce_weight=1.0, terms={}, policies=policies, pairing=PAIRINGS[0])

    def plain_kd(self) -> Recipe:
        """The same student and optimiser under plain KD at its published defaults."""
        kd = METHODS["kd"]
        bare = self.without_distillation()
        return replace(bare, ce_weight=kd.ce_weight, terms={"logits": Node("kd", kd.check({}))})

    def equation(self) -> str:
        """The objective in one line, as weights times losses."""
        parts = [f"{_short(self.ce_weight)}·CE"] if self.ce_weight else []
        for slot, node in self.terms.items():
            hyper = {k: v for k, v in node.hyper.items() if k != "weight"}
            if slot == "logits" and self.policies["temperature"].name != "constant":
                hyper.pop("temperature", None)
            inside = ", ".join(f"{k}={_short(v)}" for k, v in hyper.items())
            brackets = f"({inside})" if inside else ""
            parts.append(f"{_short(node.hyper.get('weight', 1.0))}·{node.name}{brackets}")
        for slot in ("temperature", "targets", "teaching", "schedule", "data"):
            node = self.policies[slot]
            if node.name != NEUTRAL[slot]:
                parts.append(f"[{slot}: {node.name}]")
        return " + ".join(parts).replace(" + [", " [")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)


def student_text(recipe: Recipe) -> str:
    """The architecture in a few words."""
    nodes = [recipe.student] + ([recipe.transform] if recipe.transform.name != "none" else [])
    return " + ".join(map(_node_text, nodes))


def _node_text(node: Node) -> str:
    inside = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in node.hyper.items())
    return f"{node.name}({inside})" if inside else node.name


def content_hash(data: Any) -> str:
    """A short name for plain data that depends on its content alone; floats count to twelve significant digits."""

    def canonical(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.12g}")
        if isinstance(value, Mapping):
            return {str(key): canonical(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [canonical(item) for item in value]
        return value

    text = json.dumps(canonical(data), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _short(value: object) -> str:
    return f"{float(f'{value:.3g}'):g}" if isinstance(value, float) else str(value)


def _node(entry: Any, slot: str, key: str, table: Any) -> Node:
    if isinstance(entry, str):
        entry = {key: entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get(key), str):
        raise ValueError(f"{slot} must be a name or a mapping with `{key}`, not {entry!r}")
    name = entry[key]
    try:
        cls = table[name]
        return Node(name, cls.check({k: v for k, v in entry.items() if k != key}))
    except ValueError as error:
        raise ValueError(f"{slot}: {error}") from None


def _method(entry: Any, slot: str) -> Node:
    node = _node(entry, slot, "method", METHODS)
    actual = METHODS[node.name].slot
    if actual != slot:
        raise ValueError(f"{slot}: {node.name!r} is a {actual} method; {slot} takes {_of_slot(slot)}")
    try:
        METHODS[node.name](**node.hyper)  # some values are wrong only together
    except ValueError as error:
        raise ValueError(f"{slot}: {error}") from None
    return node


def _with_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe over the slots that its preset fills: a method that is published as a whole recipe."""
    offered = {cls.name: cls for cls in METHODS if cls.preset}
    name = data["preset"]
    if name not in offered:
        raise ValueError(f"preset cannot be {name!r}; {nearest(name, offered)}")
    own = {key: value for key, value in data.items() if key != "preset"}
    return {offered[name].slot: name, **offered[name].preset, **own}


def _of_slot(slot: str) -> str:
    return ", ".join(cls.name for cls in METHODS if cls.slot == slot)
