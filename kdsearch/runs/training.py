"""One training: a recipe at a fidelity under given seeds. Flat: build, loop over stages and epochs, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import Stage
from kdsearch.kd_methods.strategy import Plan
from kdsearch.runs import checkpoint, curriculum
from kdsearch.runs.classroom import Classroom, Learner
from kdsearch.runs.data import Data, Step, spread
from kdsearch.runs.extras import gather
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.metrics import DIRECTIONS, evaluate
from kdsearch.runs.network import Network
from kdsearch.runs.objective import Losses, Term
from kdsearch.runs.offline import FixedTeacher
from kdsearch.runs.pivot import Pivot
from kdsearch.runs.record import LossRecord
from kdsearch.runs.settings import Seeds, Settings
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.students.transforms import TRANSFORMS

REVISED = 512  # training images that a transform is shown


@dataclass
class Trained:
    """What a training leaves: the network, its validation metrics and how they came about.

    Attributes:
        losses: mean of every loss over the steps it took part in; `loss_curve` has the means of each epoch.
        metadata: what has to be known beside the recipe to build `module` again: empty for a plain student.
    """

    network: Network
    metrics: dict[str, float]
    curve: list[tuple[int, float]]
    losses: dict[str, float]
    loss_curve: dict[str, list[float]]
    seconds: float
    epochs: int
    steps: int
    module: nn.Module
    metadata: dict[str, str] = field(default_factory=dict)


class Training:
    """Runs one training.

    Args:
        plan: the strategy's, with everything that it wants beforehand in place.
        learners: the student first, then its peers.
        fixed: the frozen teachers by supplier name.
        ids: the samples to learn from, sorted; without them the fidelity's share, class-balanced.
        pivot: the teacher that learns too, where the plan has one.
        members: networks that the strategy combines with the student in what is evaluated and handed out.
        rate: factor on the student's learning rate throughout.
        made_of: what this training comes from; a state on file of anything else is left aside.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        settings: Settings,
        seeds: Seeds,
        fidelity: Fidelity,
        plan: Plan,
        learners: list[Learner],
        fixed: dict[str, FixedTeacher],
        *,
        ids: Tensor | None = None,
        pivot: Pivot | None = None,
        members: Sequence[nn.Module] = (),
        rate: float = 1.0,
        state_file: Path | None = None,
        made_of: str = "",
        progress: Callable[[int, int, float], None] | None = None,
        metric: str = "accuracy",
        teacher_logits: Tensor | None = None,
        teacher_embeddings: Tensor | None = None,
    ) -> None:
        self.recipe, self.data, self.settings, self.seeds = recipe, data, settings, seeds
        self.plan, self.learners, self.fixed, self.members = plan, learners, fixed, members
        self.rate = rate
        self.transform = TRANSFORMS[recipe.transform.name](**recipe.transform.hyper)
        self.state_file, self.made_of, self.progress, self.metric = state_file, made_of, progress, metric
        self.teacher_logits = teacher_logits  # of the validation split: what the student is compared with at its end
        self.teacher_embeddings = teacher_embeddings  # the same, where the metric asks for it throughout
        self.student = learners[0]
        self.device = data.device
        self.objective = self.student.objective
        self.asking = self.objective.methods  # whose extra views and samples are shown
        self.stages = self.objective.stages()
        self.epochs = max(round(settings.epochs * fidelity.epochs), len(self.stages))
        self.ids = data.subset(fidelity.data, seeds.order) if ids is None else ids
        self.curriculum, self.views = curriculum.begin(
            self.objective.data_method, data, self.ids, seeds, epochs=self.epochs, views=settings.views
        )
        self.stored_views = self.curriculum.course.views
        self.generator = torch.Generator(self.device).manual_seed(seeds.order)
        self.done, self.steps, self.spent = 0, 0, 0.0
        self.curve: list[tuple[int, float]] = []
        self.losses = LossRecord()
        self.best: tuple[float, list[dict[str, Tensor]]] | None = None
        self.classroom = Classroom(learners, fixed, plan, data, self.views, settings, pivot)
        self.kept = self._deployed()

    def _deployed(self) -> Network:
        """The network to evaluate: the student or an average, within what methods say belongs to it."""
        kept = self.classroom.kept
        module: nn.Module = kept.module
        for method in self.objective.methods:
            module = method.export(module)
        if self.members:
            module = self.objective.strategy.combine(self.members, module)
        return kept if module is kept.module else kept.holding(module)

    def run(self) -> Trained:
        """Train to the end.

        Raises:
            TrialFailure: a loss that is not finite ("non-finite") or a batch of one that does not fit
            ("out-of-memory").
        """
        try:
            return self._run()
        finally:
            self.classroom.close()

    def _run(self) -> Trained:
        every = max(1, round(self.settings.epochs / max(self.settings.evaluations, 1)))
        began = saved = time.perf_counter()
        resumed = checkpoint.restore(self)
        with self.settings.autocast(self.device):
            curriculum.grade(self.curriculum, self.fixed, self.data, self.views, self.settings.batch_size)
        metrics: dict[str, float] = {}
        chunks = 1
        first = 0
        for index, (stage, owner) in enumerate(self.stages):
            epochs = self._stage_epochs(index)
            if self.done >= first + epochs:
                first += epochs
                continue
            self._begin_stage(stage, owner, resumed if first <= self.done and self.done > first else None)
            watched = index + 1 < len(self.stages) and self.stages[index + 1][0].best
            for epoch in range(self.done - first, epochs):
                self._revise()
                chunks = self._epoch(stage, owner, epoch, epochs, chunks)
                self.done += 1
                bad = self.losses.close_epoch()
                if bad:
                    where = f"epoch {self.done} of {self.epochs}"
                    raise TrialFailure("non-finite", f"{', '.join(bad)} is not finite in {where}")
                self.curriculum.end_epoch(self.done - 1)
                self.classroom.end_epoch()
                if watched or self.done % every == 0 or self.done == self.epochs:
                    compared = self.teacher_logits if self.done == self.epochs else None
                    self.classroom.measured()
                    metrics = evaluate(self.kept, self.data.validation, compared, self.teacher_embeddings)
                    self.curve.append((self.done, metrics[self.metric]))
                    if watched:
                        self._remember(self.curve[-1][1])
                    if self.progress is not None:
                        self.progress(self.done, self.epochs, self.curve[-1][1])
                now = time.perf_counter()
                if self.state_file is not None and now - saved > self.settings.checkpoint_seconds:
                    checkpoint.save(self, self.spent + now - began)
                    saved = now
            first += epochs
        self.classroom.measured()
        if not metrics:
            metrics = evaluate(self.kept, self.data.validation, self.teacher_logits, self.teacher_embeddings)
        seconds = self.spent + time.perf_counter() - began
        if self.state_file is not None:
            self.state_file.unlink(missing_ok=True)
        return Trained(
            self.kept,
            metrics,
            self.curve,
            self.losses.means(),
            self.losses.curve,
            seconds,
            self.epochs,
            self.steps,
            self.kept.module,
            self._metadata(),
        )

    def _revise(self) -> None:
        """Before an epoch: let the student's transform look at what it has become, once, where it wants to."""
        share = self.transform.revision
        if share is None or self.done != min(round(share * self.epochs), self.epochs - 1):
            return
        images = self.data.train.take(spread(self.ids, REVISED))
        for learner in self.learners:
            self.transform.revise(learner.network.module, learner.network.prepare(images))
        self.classroom.revised()
        self.best = None  # of the network as it was

    def _metadata(self) -> dict[str, str]:
        if self.kept is self.classroom.kept:
            return {}
        beside = {"members": str(len(self.members))} if self.members else {}
        return {"suppliers": self.objective.describe_suppliers(), **beside}

    def _remember(self, score: float) -> None:
        """Keep the weights that have scored best so far in a stage whose successor begins from them."""
        better = self.best is None or (score > self.best[0]) == (DIRECTIONS[self.metric] == "maximize")
        if better:
            modules = [module for learner in self.learners for module in learner.modules]
            self.best = score, [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]

    def gradient_norms(self) -> tuple[float, dict[str, tuple[float, float]]]:
        """The cross-entropy's gradient norm on the student, and every weighted loss with its own, on the first
        batch.
        """
        size = min(self.settings.batch_size, len(self.ids))
        step = self.data.view(spread(self.ids, size), 0, self.views)
        student = self.student.network.module.train()
        self.objective.parts.train()
        active = [learner.objective.terms for learner in self.learners]
        losses = self._losses(step, active, 0.5, labels=True, own=True, moving=[self.student])[0]
        assert losses is not None
        parameters = [p for p in student.parameters() if p.requires_grad]

        def norm(loss: Tensor) -> float:
            if not loss.requires_grad:
                return 0.0
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            found = [g for g in grads if g is not None]
            return float(torch.stack(torch._foreach_norm(found)).norm()) if found else 0.0

        target = step.target
        ce = losses.values.get("ce")
        if ce is None:
            ce = torch.nn.functional.cross_entropy(self.student.network(step.images, target).logits.float(), target)
        weights = {term.name: term.weight for term in self.objective.terms}
        weights[self.objective.strategy.name] = float(self.objective.strategy.hyper.get("weight", 1.0))
        measured = {
            name: (float(value.detach()), norm(weights[name] * value))
            for name, value in losses.values.items()
            if name in weights
        }
        return norm(ce), measured

    def _stage_epochs(self, index: int) -> int:
        """The stages' epochs add up to the training's; every stage gets at least one."""
        shares = [stage.share for stage, _ in self.stages]
        ends = [round(self.epochs * sum(shares[: k + 1]) / sum(shares)) for k in range(len(shares))]
        for k in range(len(ends)):
            ends[k] = min(max(ends[k], k + 1), self.epochs - (len(ends) - 1 - k))
        return ends[index] - (ends[index - 1] if index else 0)

    def _begin_stage(self, stage: Stage, owner: str | None, state: dict[str, Any] | None) -> None:
        active = self.objective.active(stage, owner)
        self.asking = [*(term.method for term in active), self.objective.temperature, self.objective.strategy]
        if stage.best and state is None and self.best is not None:
            modules = [module for learner in self.learners for module in learner.modules]
            for module, kept in zip(modules, self.best[1], strict=True):
                module.load_state_dict(kept)
        self.classroom.begin(state)
        for k, learner in enumerate(self.learners):
            learner.parameters = [p for module in learner.modules for p in module.parameters() if p.requires_grad]
            learner.optimizer = learner.objective.optimizer.build(learner.parameters)
            for group in learner.optimizer.param_groups:
                group["base_lr"] = group["lr"] * (self.rate if learner is self.student else 1.0)
            if state is not None:
                learner.optimizer.load_state_dict(state["optimizers"][k])

    def _epoch(self, stage: Stage, owner: str | None, epoch: int, epochs: int, chunks: int) -> int:
        ids, view = self.curriculum.epoch(self.done)
        turn = self.done % self.stored_views
        batch_size = min(self.settings.batch_size, len(self.ids))
        count = max(1, len(ids) // batch_size)
        active = [learner.objective.active(stage, owner) for learner in self.learners]
        for k, step in enumerate(self.data.steps(ids, view, batch_size, self.views, turn=turn)):
            progress = (epoch + k / count) / epochs
            rate = self.objective.schedule.learning_rate(progress) * stage.rate
            for optimizer in self._optimizers():
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * rate
            while True:
                try:
                    self._step(step, stage, active, progress, chunks)
                    break
                except torch.OutOfMemoryError:
                    chunks *= 2
                    if chunks > batch_size:
                        raise TrialFailure("out-of-memory", "a batch of one does not fit in memory") from None
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
            self.steps += 1
        return chunks

    def _optimizers(self) -> list[Any]:
        """Everybody's, the pivot's last."""
        pivot = self.classroom.pivot
        return [learner.optimizer for learner in self.learners] + ([] if pivot is None else [pivot.optimizer])

    def _step(self, step: Step, stage: Stage, active: list[list[Term]], progress: float, chunks: int) -> None:
        turns: list[list[Learner]] = [[learner] for learner in self.learners] if self.plan.turns else [self.learners]
        for moving in turns:
            for learner in self.learners:
                learner.optimizer.zero_grad(set_to_none=True)
            for part in step.parts(chunks):
                self._forward_backward(part, stage, active, progress, 1.0 / chunks, moving)
            for learner in moving:
                if learner.objective.optimizer.split_gradients:
                    none: list[Tensor | None] = [None] * len(learner.parameters)
                    learner.optimizer.step_split(
                        learner.split.get("task", none), learner.split.get("distillation", none)
                    )
                    learner.split.clear()
                else:
                    learner.optimizer.step()
        self.classroom.moved(self.steps)

    def _forward_backward(
        self,
        step: Step,
        stage: Stage,
        active: list[list[Term]],
        progress: float,
        share: float,
        moving: list[Learner],
    ) -> None:
        """Gradients of those who move, each from its own losses."""
        own = stage.terms in ("all", "others")
        all_losses = self._losses(step, active, progress, labels=stage.labels, own=own, moving=moving)
        if all_losses[0] is not None:
            self.losses.add(all_losses[0].values, share)
        totals: list[Tensor] = []
        for learner, losses in zip(self.learners, all_losses, strict=True):
            if losses is None:
                continue
            if learner.objective.optimizer.split_gradients:
                self._split_backward(learner, losses, share)
                continue
            total = losses.task if losses.distillation is None else losses.task + losses.distillation
            if not total.requires_grad:
                raise TrialFailure("rejected", "no loss of this stage reaches the student")
            totals.append(total * share if share != 1.0 else total)
        if totals:
            torch.autograd.backward(totals)

    def _losses(
        self,
        step: Step,
        active: list[list[Term]],
        progress: float,
        *,
        labels: bool,
        own: bool,
        moving: list[Learner] | None = None,
    ) -> list[Losses | None]:
        """One forward pass of everybody, and the losses of those who move: everybody's without `moving`."""
        moving = self.learners if moving is None else moving
        extras = gather(self.asking, step, self.data, self.views, self.stored_views, progress, self.generator)
        answers, losses = self.classroom.losses(
            step, extras, active, progress, self.generator, labels=labels, own=own, moving=moving
        )
        if self.student in moving:
            self.curriculum.observe(step.ids, answers[0].logits)
        return losses

    def _split_backward(self, learner: Learner, losses: Losses, share: float) -> None:
        """Task and distillation gradients apart, added up over the parts of a batch."""
        for kind, loss in (("task", losses.task), ("distillation", losses.distillation)):
            if loss is None or not loss.requires_grad:
                continue
            keep = kind == "task" and losses.distillation is not None
            grads = torch.autograd.grad(loss * share, learner.parameters, retain_graph=keep, allow_unused=True)
            held = learner.split.setdefault(kind, [None] * len(grads))
            for i, grad in enumerate(grads):
                before = held[i]
                if grad is not None:
                    held[i] = grad if before is None else before + grad
