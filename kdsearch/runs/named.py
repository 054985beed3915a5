"""A name with its options, as the command line takes them: `resnet:depth=20,width=1`."""

from __future__ import annotations

from typing import Any

import yaml

from kdsearch import yaml_text
from kdsearch.errors import UserError


def parse_named(text: str, where: str, kind: str) -> tuple[str, dict[str, Any]]:
    """The name and its options, values read as YAML.

    Args:
        where: the option or place it was given in.
        kind: what is named, in capitals, for the message.

    Raises:
        UserError: not of that form.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        try:
            options[key] = yaml_text.load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise UserError(f"{where} {text!r}: write {kind}:KEY=VALUE,KEY=VALUE")
    return name, options
