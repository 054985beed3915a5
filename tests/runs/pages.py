"""A report as a reader finds it: its text, the data of its figures, and what it refers to."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import plotly.graph_objects as go

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, data and references of a page; fails on a tag that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.data: dict[str, dict[str, Any]] = {}
        self._text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.references += [str(given[key]) for key in ("src", "href", "action", "data", "srcset") if key in given]
        if tag not in VOID:
            self.open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, given = self.open[-1] if self.open else ("", {})
        if tag == "script" and given.get("type") == "application/json":
            self.data[str(given["id"])] = json.loads(data)
        elif tag not in ("script", "style"):
            self._text.append(data)


def xs(figure: go.Figure | None, name: str) -> list[Any]:
    assert figure is not None
    return [value for trace in figure.data if trace.name == name for value in trace.x]


def ys(figure: go.Figure | None, name: str) -> list[Any]:
    assert figure is not None
    return [value for trace in figure.data if trace.name == name for value in trace.y]
