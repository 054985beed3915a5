"""Distillation from the first step to the last."""

from __future__ import annotations

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import ScheduleMethod


@register
class Always(ScheduleMethod):
    """Full strength throughout: the neutral choice."""

    name = "always"
    title = "Distillation throughout the training"
    paper = "arXiv 1503.02531"
    year = 2015
