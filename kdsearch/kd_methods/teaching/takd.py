"""Teacher assistant: a chain of models of intermediate size between teacher and student."""

from __future__ import annotations

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.strategy import TEACHER, Plan, Pretrain, TeachingStrategy
from kdsearch.kd_methods.teaching._sizes import Sizes, sizes

PATHS = ("0.5", "0.33", "0.67", "0.67-0.33", "0.75-0.5-0.25")


@register
class TAKD(TeachingStrategy):
    """The teacher teaches an assistant, which teaches a smaller one or the student.

    `path` lists the assistants' sizes, 0 being the student's and 1 the teacher's on the scale of log parameters; the
    paper steps through depths of one family instead. There a single assistant does best where its accuracy is near the
    mean of the teacher's and the student's, and longer paths do better still; any falling list may be given. Assistants
    learn by plain KD and are trained once per size, so that paths that begin alike share them.

    Source: Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, AAAI 2020, sections 3 to 5.
    """

    name = "takd"
    title = "Knowledge Distillation via Teacher Assistant"
    paper = "arXiv 1902.03393"
    year = 2020
    shaping = ("path",)

    path: str = Sizes("0.5", searched=PATHS, doc="sizes of the assistants, in order")

    def plan(self) -> Plan:
        chain: list[Pretrain] = []
        above = TEACHER
        for k, size in enumerate(sizes(self.path)):
            chain.append(Pretrain(f"assistant{k + 1}", size, (above,)))
            above = chain[-1].name
        return Plan(teachers=(above,), pretrain=tuple(chain))
