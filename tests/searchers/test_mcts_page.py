"""docs/mcts.md: its example runs, its picture is the example's tree, and its table is what is declared."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import optuna
import pytest

from kdsearch.searchers import Node
from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.drawing import svg

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "mcts.md").read_text()


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The names that the page's example leaves behind."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, Any] = {}
    block = re.search(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert block
    exec(block[1], found)
    return found


def test_the_example_finds_a_good_recipe(example: dict[str, Any]) -> None:
    assert example["study"].best_params["deep"] is True
    assert example["study"].best_value > 0.8
    assert example["root"].visits == 60
    assert json.loads(json.dumps(example["root"].to_dict()))["visits"] == 60


def test_the_picture_is_the_example_s_tree(example: dict[str, Any]) -> None:
    """To store it anew: `python -m tests.searchers.test_mcts_page`."""
    assert (DOCS / "mcts-tree.svg").read_text() == svg(example["root"])


def test_the_table_is_what_is_declared() -> None:
    options = PAGE.split("## Options")[1].split("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", options, flags=re.M)
    assert rows == [(name, p.describe(), p.doc) for name, p in MCTS.parameters.items()]
    assert all(name in PAGE for name in MCTS.objects)


def test_a_picture_holds_what_can_be_read() -> None:
    wide, thin = Node("logits", "kd<", 90, 0, 0.8), Node("logits", "at", 1, 0, 0.1)
    root = Node(None, None, 91, 0, 0.5, [wide, thin])
    drawn = ET.fromstring(svg(root))
    texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert "logits=kd<" in texts
    assert "logits=at" not in texts
    assert svg(Node()).count("<rect") == 1


if __name__ == "__main__":
    found: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, flags=re.S)[1], found)  # type: ignore[index]
    (DOCS / "mcts-tree.svg").write_text(svg(found["root"]))
