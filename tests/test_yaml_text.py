"""Numbers as people write them, and nothing else read in another way than PyYAML reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdsearch import yaml_text
from kdsearch.runs import config_file


@pytest.mark.parametrize("text", ["5e-4", "1E3", "-2e+1", ".5e1", "+3.e2", "5.0e-4"])
def test_an_exponent_makes_a_number(text: str) -> None:
    value = yaml_text.load(text)
    assert isinstance(value, float)
    assert value == float(text)


@pytest.mark.parametrize("text", ["'5e-4'", "e5", "5e", "1e3x", "0x1e", "12", "1.5", "no", "~", "2026-11-22", "[1, a]"])
def test_the_rest_is_as_it_was(text: str) -> None:
    assert yaml_text.load(text) == yaml.safe_load(text)


@pytest.mark.parametrize("value", ["12e456789012", "5e-4", 5e-4, 1e300, "1.5", {"b": [1e-9], "a": "é"}])
def test_what_was_written_is_read_again(value: Any) -> None:
    assert yaml_text.load(yaml_text.dump(value)) == value


def test_in_a_config(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("limits: {parameters: 3e3}\nspace: {optimizer: {sgd: {lr: 1e-1, weight_decay: 5e-4}}}\n")
    config = config_file.read(path, ["fidelity.epochs=1e1"])
    assert config.limits.parameters == 3000
    assert config.fidelity.epochs == 10
    assert config.space["optimizer"]["sgd"] == {"lr": 0.1, "weight_decay": 0.0005}
