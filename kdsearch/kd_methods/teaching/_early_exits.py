"""What strategies with classifiers after the shallower stages share. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.label_loss import label_loss
from kdsearch.kd_methods.signals import Batch, ModelSpec, Signals, StageSpec
from kdsearch.kd_methods.strategy import SELF, Plan, TeachingStrategy
from kdsearch.parameters import Choice, Flag

if TYPE_CHECKING:
    from torch import Tensor, nn


class EarlyExits(TeachingStrategy):
    """A student with an exit after every stage but the last, all of which learn from labels.

    `parts` are the exits, a list of modules from a stage's output to (feature, logits). With `keep_exits` they belong
    to the network that is handed out, whose `exits(images)` gives everybody's logits; `result="ensemble"` makes their
    mean probabilities its answer, and keeps them too. Kept exits count in its size.
    """

    keep_exits: bool = Flag(False, doc="exits stay in the network that is handed out")
    result: str = Choice("last", ["last", "ensemble"], searched=["last"], doc="whose answer is evaluated and exported")

    _exit_stages: tuple[StageSpec, ...] = ()

    def plan(self) -> Plan:
        return Plan(teachers=(SELF,))

    def place_exits(self, student: ModelSpec) -> tuple[StageSpec, ...]:
        """The stages that exits stand behind.

        Raises:
            ValueError: the student has fewer than two stages.
        """
        if len(student.stages) < 2:
            raise ValueError(f"{self.name} puts exits behind lower stages and needs a student with two stages or more")
        self._exit_stages = student.stages[:-1]
        return self._exit_stages

    def signals(self, feature: Tensor, logits: Tensor) -> Signals:
        """An exit's answer as a learner's."""
        return Signals(logits=logits)

    def answers(self, student: Signals) -> list[Signals]:
        """The exits' signals. Kept as views of the student's, so that labels and lessons of a step run the exits
        once.
        """
        names = [f"exit{k}" for k in range(len(self.parts))]
        if names[0] not in student.views:
            for name, branch, feature in zip(names, self.parts, student.features, strict=False):
                student.views[name] = self.signals(*branch(feature))
        return [student.views[name] for name in names]

    def exit_labels(self, student: Signals, batch: Batch) -> Tensor:
        """Cross-entropy of the labels, summed over the exits."""
        first, *others = self.answers(student)
        total = label_loss(first.logits, batch)
        for answer in others:
            total = total + label_loss(answer.logits, batch)
        return total

    def export(self, student: nn.Module) -> nn.Module:
        if not self.keep_exits and self.result == "last":
            return student
        from kdsearch.kd_methods.teaching._exits import ExitingStudent

        return ExitingStudent(student, self.parts, self._exit_stages, ensemble=self.result == "ensemble")
