"""YAML in which 5e-4 is a number, as in YAML 1.2; PyYAML takes it for a string unless it is written 5.0e-4."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kdsearch.errors import UserError

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


def read(path: str | Path, what: str) -> Any:
    """The plain data of a file, which a message calls `what`.

    Raises:
        UserError: it cannot be read, or is no YAML; the message names the file and the line.
    """
    try:
        return load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{what}: cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not readable as YAML: it is no text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{place}: not readable as YAML: {getattr(error, 'problem', error)}") from None


def dump(data: Any, width: int = 80) -> str:
    """Plain data as YAML, keys in their order.

    Raises:
        yaml.YAMLError: something in it is not plain.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
