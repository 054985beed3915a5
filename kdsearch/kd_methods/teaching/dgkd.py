"""Densely guided distillation: every larger model teaches every smaller one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.signals import Batch, Signals
from kdsearch.kd_methods.strategy import TEACHER, Lesson, Plan, Pretrain, TeachingStrategy
from kdsearch.kd_methods.teaching._sizes import Sizes, sizes
from kdsearch.parameters import Choice, Float, Int

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor


def survivors(
    suppliers: int, *, survival: float = 0.75, generator: Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Independent draws [suppliers]: 1 with probability `survival`, else 0."""
    import torch

    return (torch.rand(suppliers, generator=generator, device=device) < survival).float()


def chosen(
    suppliers: int, *, dropped: int = 1, generator: Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """0 for so many of [suppliers] at random, 1 for the others, of which there is one at least."""
    import torch

    rank = torch.rand(suppliers, generator=generator, device=device).argsort().argsort()
    return (rank >= min(dropped, suppliers - 1)).float()


@register
class DGKD(TeachingStrategy):
    """The teacher and all assistants teach the student; each assistant learns from the teacher and all larger ones.

    Their lessons are added up, not averaged, and so are the labels: n assistants give (n + 1) (1 - λ) CE + λ Σ KD.
    Here 1 - λ is the recipe's `ce` and λ the weight of each of its terms, whichever these are; the strategy adds the
    factor n + 1. In each step an assistant's lesson survives with probability `survival`; the teacher's always does.

    Published code differs: no factor n + 1, λ = 1, and a fixed number of lessons left out of each step, the teacher's
    not spared. `drop="fixed"` gives that, but for the code's mean over classes, by which its KD is C times weaker than
    the usual one. Its KD is at T = 5. Assistants learn by plain KD at its defaults in lessons of the same kind; `path`
    lists their sizes, 0 being the student's and 1 the teacher's on the scale of log parameters, where the paper steps
    through depths of one family (three assistants from 10 layers to 2).
    """

    name = "dgkd"
    title = "Densely Guided Knowledge Distillation using Multiple Teacher Assistants"
    paper = "arXiv 2009.08825"
    year = 2021
    shaping = ("path",)

    path: str = Sizes(
        "0.75-0.5-0.25", searched=("0.75-0.5-0.25", "0.67-0.33", "0.5"), doc="sizes of the assistants, in order"
    )
    drop: str = Choice("bernoulli", ["bernoulli", "fixed"], searched=["bernoulli"], doc="how lessons are left out")
    survival: float = Float(0.75, low=0.5, high=1.0, domain=(0, 1), doc="of an assistant's lesson, under 'bernoulli'")
    dropped: int = Int(1, low=1, high=2, doc="lessons left out of each step, under 'fixed'")

    def plan(self) -> Plan:
        larger: list[str] = [TEACHER]
        assistants: list[Pretrain] = []
        for k, size in enumerate(sizes(self.path)):
            assistants.append(Pretrain(f"assistant{k + 1}", size, tuple(larger), by="strategy"))
            larger.append(assistants[-1].name)
        return Plan(teachers=tuple(larger), pretrain=tuple(assistants))

    def label_weight(self) -> float:
        # An assistant has fewer teachers than the plan names.
        return float(len(self.suppliers or self.plan().teachers)) if self.drop == "bernoulli" else 1.0

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        supplied = [(name, signals) for name, given in teachers.items() for signals in given]
        count, device = len(supplied), student.logits.device
        if self.drop == "bernoulli":
            kept = survivors(count, survival=self.survival, generator=batch.generator, device=device)
            spared = TEACHER
        else:
            kept = chosen(count, dropped=self.dropped, generator=batch.generator, device=device)
            spared = ""
        return [
            Lesson(student, signals, 1.0 if name == spared else kept[k], name)
            for k, (name, signals) in enumerate(supplied)
        ]
