"""Who answers a step and who teaches whom: learners, frozen teachers, averages, and the plan that joins them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from kdsearch.kd_methods import Batch, Need, Signals
from kdsearch.kd_methods.strategy import AVERAGE, HYBRID, PEERS, PIVOT, SELF, Plan, peer
from kdsearch.runs.data import Data, Step
from kdsearch.runs.extras import Extra, answer, asked, taught
from kdsearch.runs.hybrid import Hybrid
from kdsearch.runs.network import Network
from kdsearch.runs.objective import Losses, Objective, Term
from kdsearch.runs.offline import FixedTeacher
from kdsearch.runs.pivot import Pivot
from kdsearch.runs.settings import Settings
from kdsearch.runs.views import ViewSpec

SECOND_VIEW = 1_000_003  # offset of the other view a moving average is shown, and between those of learners


@dataclass(eq=False)
class Learner:
    """A network being trained, its objective and what moves it. `stages` are those that are tapped."""

    network: Network
    objective: Objective
    optimizer: Any = None
    parameters: list[Tensor] = field(default_factory=list)
    split: dict[str, list[Tensor | None]] = field(default_factory=dict)
    stages: list[int] = field(default_factory=list)

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        """What is trained: the network, and what the methods train beside it."""
        return self.network.module, self.objective.parts


class Classroom:
    """All networks of one training. The first learner is the student, the others are its peers.

    Args:
        fixed: the frozen teachers by supplier name.
        pivot: the teacher that learns too, where the plan has one.

    Attributes:
        kept: whose weights are the result.
    """

    def __init__(
        self,
        learners: list[Learner],
        fixed: dict[str, FixedTeacher],
        plan: Plan,
        data: Data,
        views: ViewSpec,
        settings: Settings,
        pivot: Pivot | None = None,
    ) -> None:
        self.learners, self.fixed, self.plan, self.pivot = learners, fixed, plan, pivot
        self.data, self.views, self.settings = data, views, settings
        self.student = learners[0]
        self.average: Network | None = None
        self.hybrid: Hybrid | None = None
        self.listen()
        self.kept = self.student.network if plan.keep == "student" or self.average is None else self.average

    def listen(self) -> None:
        """Tap exactly what somebody reads; every learner's answers to its peers included."""
        plan, objective = self.plan, self.student.objective
        needs = objective.needs()
        self.tapped = {name: teacher.stages for name, teacher in self.fixed.items()}
        if plan.average or plan.keep == HYBRID:  # copied before anything is tapped: a copy would keep the hooks
            self.average = copy.deepcopy(self.student.network)
            self.average.module.requires_grad_(False)
        if plan.peer_sizes:
            self._listen_apart()
        else:
            self._listen_alike()
        if plan.average:
            assert self.average is not None
            spec = self.student.network.spec(self.data.input_shape)
            self.average.listen(needs.teacher | {Need.LOGITS}, spec, self.student.stages)
        if HYBRID in plan.teachers:
            self.hybrid = Hybrid([learner.network for learner in self.learners])
        if self.pivot is not None:
            read = {k for learner in self.learners for k in learner.objective.teacher_stages(PIVOT)}
            self.tapped[PIVOT] = sorted(read)
            self.pivot.listen(needs.teacher, self.tapped[PIVOT])
        for teacher in self.fixed.values():
            teacher.listen()

    def _listen_alike(self) -> None:
        """Learners of one architecture, or a booster that learns from labels alone."""
        plan, objective = self.plan, self.student.objective
        needs, shape = objective.needs(), self.data.input_shape
        boosted = PEERS in plan.teachers and not plan.peers_learn
        # Suppliers of the student's own architecture: their stages are the student's.
        alike = [s for s in (PEERS, AVERAGE, HYBRID, SELF) if s in plan.teachers and not (s == PEERS and boosted)]
        wanted = needs.student
        if {PEERS, HYBRID, SELF} & set(alike):
            wanted = wanted | needs.teacher
        stages = set(objective.student_stages())
        for supplier in alike:
            stages |= set(objective.teacher_stages(supplier)) if objective.terms else set()
        self.tapped |= dict.fromkeys((PEERS, AVERAGE, HYBRID, SELF), sorted(stages))
        spec = self.student.network.spec(shape)
        for learner in self.learners:
            network = learner.network
            if learner is not self.student and boosted:
                learner.stages = self.tapped[PEERS] = objective.teacher_stages(PEERS)
                network.listen(needs.teacher | {Need.LOGITS}, network.spec(shape), learner.stages)
            else:
                learner.stages = sorted(stages)
                network.listen(wanted, spec, learner.stages)

    def _listen_apart(self) -> None:
        """Learners of several sizes: each is tapped for itself and for whoever learns from it."""
        for k, learner in enumerate(self.learners):
            others = [other.objective for other in self.learners if other is not learner]
            stages = set(learner.objective.student_stages()).union(*(o.teacher_stages(peer(k)) for o in others))
            read = learner.objective.needs().student.union(*(o.needs().teacher for o in others))
            learner.stages = self.tapped[peer(k)] = sorted(stages)
            learner.network.listen(read, learner.network.spec(self.data.input_shape), learner.stages)

    def begin(self, state: dict[str, Any] | None) -> None:
        """A stage begins, or goes on from a checkpoint's `state`: everybody who learns is in training mode."""
        for learner in self.learners:
            for module in learner.modules:
                module.train()
        if self.plan.average and self.average is not None:
            self.average.module.train()
        if self.pivot is not None:
            self.pivot.begin(self.student.objective.optimizer, state)

    def losses(
        self,
        step: Step,
        extras: list[Extra],
        active: list[list[Term]],
        progress: float,
        generator: Generator,
        *,
        labels: bool,
        own: bool,
        moving: list[Learner],
    ) -> tuple[list[Signals], list[Losses | None]]:
        """One forward pass of everybody: every learner's answer, and the losses of those who move."""
        plan = self.plan
        steps = [self._shown(step, k) for k in range(len(self.learners))]
        with self.settings.autocast(self.data.device):
            answers = [
                answer(learner.network, shown, extras).float()
                for learner, shown in zip(self.learners, steps, strict=True)
            ]
            common = {name: [taught(teacher, step, extras)] for name, teacher in self.fixed.items()}
            if AVERAGE in plan.teachers:
                common[AVERAGE] = [self._averaged(step, extras)]
            hybrid = None
            if self.hybrid is not None:
                seen = self._shown(step, len(self.learners))
                hybrid = asked(self.hybrid, seen.images, seen.target, extras)
                common[HYBRID] = [hybrid.detach()]
        batches = [self._batch(shown, extras, progress, generator) for shown in steps]
        if self.pivot is not None:
            logits = [own_answer.logits.detach() for own_answer in answers]
            images, soft = self.student.objective.strategy.intensive(step.images, logits, batches[0])
            self.pivot.learn(images, soft, self.settings.autocast(self.data.device))
            with self.settings.autocast(self.data.device):
                common[PIVOT] = [asked(self.pivot.teach, step.images, step.target, extras)]
        found: list[Losses | None] = []
        for k, learner in enumerate(self.learners):
            if learner not in moving:
                found.append(None)
                continue
            if hybrid is not None:
                answers[k].views[HYBRID] = hybrid
                batches[k].views[HYBRID] = self._batch(seen, [], progress, generator)
            learns = k == 0 or plan.peers_learn
            losses = learner.objective(
                answers[k],
                {**common, **self._live(answers, k)} if learner.objective.taught else {},
                batches[k],
                active[k],
                labels=labels or not learns,
                own=own,
                student_tapped=learner.stages,
                tapped=self.tapped,
            )
            found.append(losses)
        return answers, found

    def _shown(self, step: Step, k: int) -> Step:
        """What learner k sees of a step; the hybrid counts as one more."""
        if not self.plan.own_views or k == 0 or step.soft_target is not None:
            return step  # of a mixture, another view would be another mixture
        return self.data.view(step.ids, step.view + k * SECOND_VIEW, self.views, turn=step.turn)

    def _live(self, answers: list[Signals], k: int) -> dict[str, list[Signals]]:
        """What learner k's fellows, and it itself, supply."""
        plan = self.plan
        supplied: dict[str, list[Signals]] = {}
        if PEERS in plan.teachers:
            others = [j for j in range(len(answers)) if j != k]
            if plan.peer_sizes:
                supplied = {peer(j): [answers[j].detach()] for j in others}
            else:
                supplied[PEERS] = [answers[j].detach() for j in others]
        if SELF in plan.teachers:
            supplied[SELF] = [answers[k].detach()]
        return supplied

    def _batch(self, step: Step, extras: list[Extra], progress: float, generator: Generator) -> Batch:
        batch = Batch(step.target, step.ids, progress, step.soft_target, generator, partly=self.data.partly)
        batch.views = {extra.name: extra.batch for extra in extras}
        return batch

    @torch.no_grad()
    def _averaged(self, step: Step, extras: list[Extra]) -> Signals:
        images = step.images
        if self.plan.second_view and step.soft_target is None:
            images = self.data.view(step.ids, step.view + SECOND_VIEW, self.views).images
        average = self.average
        assert average is not None
        return asked(lambda x, y, visible: average(x, y, visible=visible), images, step.target, extras).detach()

    @torch.no_grad()
    def moved(self, steps: int) -> None:
        """All learners have taken step number `steps`, from 0: whatever follows them does."""
        plan = self.plan
        if plan.average and self.average is not None:
            # The warm-up of Mean Teacher: decay min(1 - 1 / (step + 1), decay).
            decay = min(1 - 1 / (steps + 2), plan.average)
            kept: list[Tensor] = list(self.average.module.parameters())
            now: list[Tensor] = list(self.student.network.module.parameters())
            torch._foreach_lerp_(kept, now, 1 - decay)
        if self.hybrid is not None and plan.fuse and plan.fuse_every and (steps + 1) % plan.fuse_every == 0:
            self.hybrid.fuse(plan.fuse)

    def measured(self) -> None:
        """Bring the network that is kept up to date, before it is measured."""
        if self.plan.keep == HYBRID and self.hybrid is not None and self.average is not None:
            self.hybrid.fill(self.average.module)

    @torch.no_grad()
    def revised(self) -> None:
        """The learners' transform has changed their buffers: an average takes them over."""
        if self.average is not None:
            pairs = zip(self.average.module.buffers(), self.student.network.module.buffers(), strict=True)
            for kept, own in pairs:
                kept.copy_(own)

    def end_epoch(self) -> None:
        if self.hybrid is not None and self.plan.fuse and not self.plan.fuse_every:
            self.hybrid.fuse(self.plan.fuse)

    def close(self) -> None:
        """Take every tap off: the networks are handed out, or go back to the run."""
        networks = [learner.network for learner in self.learners]
        networks += [teacher.network for teacher in self.fixed.values()]
        networks += [] if self.average is None else [self.average]
        networks += [] if self.pivot is None else [self.pivot.network]
        for network in networks:
            network.close()
