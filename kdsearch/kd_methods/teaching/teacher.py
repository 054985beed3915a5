"""One fixed teacher."""

from __future__ import annotations

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.strategy import TeachingStrategy


@register
class Teacher(TeachingStrategy):
    """The run's teacher, frozen, from its stored signals where they are cached and live where not."""

    name = "teacher"
    title = "One fixed teacher"
    paper = "arXiv 1503.02531"
    year = 2015
