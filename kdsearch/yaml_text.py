"""YAML in which 5e-4 is a number, as in YAML 1.2; PyYAML takes it for a string unless it is written 5.0e-4."""

from __future__ import annotations

import re
from typing import Any

import yaml

EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
"""The core schema of YAML 1.2, section 10.3.2."""


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the loader would take for numbers: a recipe's hash may be 12e456789012."""


for _one in (_Loader, _Dumper):
    _one.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def load(text: str) -> Any:
    """Plain data from YAML.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, _Loader)


def dump(data: Any, width: int = 80) -> str:
    """Plain data as YAML, keys in their order.

    Raises:
        yaml.YAMLError: something in it is not plain.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
