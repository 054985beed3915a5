"""Linearity grafting: lines in the place of ReLUs that hardly matter."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kdsearch.parameters import Choice, Float
from kdsearch.search_space.students.transforms import StudentTransform, register

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)


@register
class LinearityGrafting(StudentTransform):
    """Replaces a `share` of every layer's ReLU neurons by learned lines y = a x + b, part-way through the training.

    Chosen are neurons that are insignificant, by their mean |input| over training images, and unstable, that is, whose
    input changes sign under small perturbations of the image. Fewer unstable neurons make a network easier to certify;
    the accuracy hardly suffers. A neuron is a channel at a place: a and b start at 0.4 and 0, are the neuron's own and
    take no weight decay. They count as parameters, 2 · share of the neurons, which in a small network on large maps is
    more than it has otherwise.

    The authors graft a network that has been trained adversarially, and train the result on at a learning rate of ten
    times the weights' for the lines. Here both halves are one training, of the recipe's kind, at one rate: until
    `revision` every neuron is a ReLU. Which neurons are grafted is rebuilt: the authors' code ranks by significance
    alone (`selection="magnitude"`), and how it meets instability is in no script of theirs. Here the sum of both ranks
    decides. Instability is measured on perturbed images, where they take bounds from a verifier. Ranking by the loss's
    gradient, another option of theirs, needs labels and is left out, as is one ratio for the whole network.

    ReLUs that run several times in a pass, and those on tokens, stay; functions that a module calls by name cannot be
    reached. A student that is thinned by cutting channels out does not fit the lines and is left whole.

    Source: Chen et al., Linearity Grafting: Relaxed Neuron Pruning Helps Certifiable Robustness, ICML 2022, section 3.
    """

    name = "linearity_grafting"
    title = "Linearity Grafting: Relaxed Neuron Pruning Helps Certifiable Robustness"
    paper = "ICML 2022"
    year = 2022

    share: float = Float(0.5, low=0.1, high=0.8, domain=(0.001, 1), doc="of each layer's neurons that become lines")
    revision: float = Float(0.5, low=0.25, high=0.75, domain=(0, 1), doc="share of the training before that")
    selection: str = Choice("both", ("both", "magnitude"), doc="insignificant and unstable, or insignificant alone")
    eps: float = Float(
        0.03,
        low=0.01,
        high=0.1,
        log=True,
        domain=(0, 10),
        doc="perturbation, in deviations of the data (2/255 is 0.03)",
    )

    def apply(self, model: nn.Module) -> nn.Module:
        from kdsearch.search_space.students.networks.grafted import place

        shape = getattr(model, "built_for", None)
        if shape is None:
            raise ValueError("linearity_grafting needs a student of StudentFamily.build, which notes its input's size")
        kept = place(model, shape, self.share)
        if kept:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in kept.items())
            log.info("linearity_grafting left %d ReLUs as they are: %s", len(kept), reasons)
        return model

    def revise(self, model: nn.Module, images: Tensor) -> None:
        from kdsearch.search_space.students.networks.grafted import graft

        graft(model, images, eps=self.eps, by_stability=self.selection == "both")
