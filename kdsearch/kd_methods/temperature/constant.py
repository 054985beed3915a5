"""The temperature each term declares, unchanged."""

from __future__ import annotations

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import TemperatureMethod


@register
class Constant(TemperatureMethod):
    """Every term keeps its own temperature."""

    name = "constant"
    title = "A constant temperature, each term's own"
    paper = "arXiv 1503.02531"
    year = 2015
