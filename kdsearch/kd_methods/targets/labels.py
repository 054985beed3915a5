"""The labels of the data set, unchanged."""

from __future__ import annotations

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import TargetMethod


@register
class Labels(TargetMethod):
    """Hard labels, or mixed ones under mixup, at full weight: the neutral choice."""

    name = "labels"
    title = "Labels as they are given"
    paper = "arXiv 1503.02531"
    year = 2015
