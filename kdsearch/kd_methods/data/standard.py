"""The data set's usual augmentation, nothing mixed."""

from __future__ import annotations

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import DataMethod


@register
class Standard(DataMethod):
    """Padded random crop and flip, as nearly every CIFAR study has it: the neutral choice."""

    name = "standard"
    title = "Deep Residual Learning for Image Recognition (its augmentation)"
    paper = "arXiv 1512.03385"
    year = 2015
