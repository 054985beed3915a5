"""The tap: runs a model and hands out the signals that somebody needs, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from kdsearch.kd_methods.adapters import to_map
from kdsearch.kd_methods.attention_map import attention_map
from kdsearch.kd_methods.dry_run import evaluating, first_tensor, ramp_images
from kdsearch.kd_methods.probe import probe
from kdsearch.kd_methods.signals import ModelSpec, Need, Signals, StageSpec
from kdsearch.kd_methods.sparse import Thinning, Visible

__all__ = ["Tap", "probe"]

Slots = list[Tensor | None]

EARLY = frozenset({Need.FEATURES, Need.PREACT, Need.QKV, Need.MAP, Need.CLASSIFIER})
"""Signals that are complete before the model has answered: parameters, and what its stages put out."""

DIFFERENTIATED = frozenset({Need.INPUT, Need.INPUT_GRADIENT, Need.ATTENTION_GRADIENT})
"""Signals for which the images take part in the graph."""

_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
_NOT_ACTIVATIONS = ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")


class _Enough(Exception):
    """Every signal is there: the rest of the pass would be computed for nobody."""


class Tap:
    """A model and the hooks that collect its signals.

    Args:
        model: any image classifier; the tap does not change its training mode.
        spec: of `probe`.
        needs: signals to collect. Logits alone take no hook at all.
        stages: indices into `spec.stages`, in the order in which their signals are wanted; all by default.

    While a tap on PREACT is open, in-place activations at the end of a stage work out of place: what enters them would
    be overwritten otherwise. A tap on DISTILLATION_HEAD or TOKEN_HEADS makes distilled transformers give all heads in
    training (in evaluation they average them, and there is no second head to tap). `close` undoes both. Hooks sleep
    outside a call of the tap: the model called by itself, or a copy of it, leaves no trace here.

    A model in evaluation mode whose stages alone are read runs no further than the last of them; its logits are then
    [B, 0]. The first pass is a whole one and shows where that is.

    Raises:
        ValueError: a stage, or a signal, that the model does not have.
    """

    def __init__(
        self, model: nn.Module, spec: ModelSpec, needs: frozenset[Need], stages: Sequence[int] | None = None
    ) -> None:
        self.model = model
        self.needs = needs
        self._handles: list[RemovableHandle] = []
        self._undo: list[Callable[[], None]] = []
        self._awake = False
        self._features: Slots = []
        self._preact: Slots = []
        self._entering: Slots = []  # by stage, what entered its last activation so far
        self._embedding: Slots = []
        self._map: Slots = []
        self._qkv: Slots = []
        self._last_tokens: Slots = []
        self._stops = needs <= EARLY
        self._thinning = Thinning(model, spec)
        self._passed = 0  # stages that have ended in this pass
        self._enough = 0  # and in a whole one, once it is known
        self._classifier: nn.Module | None = None
        count = len(spec.stages)
        wrong = [k for k in stages or () if not 0 <= k < count]
        if wrong:
            raise ValueError(f"the model has stages 0 to {count - 1}, not {wrong[0]}")
        chosen = list(spec.stages) if stages is None else [spec.stages[k] for k in stages]
        self._stages = chosen
        if needs & {Need.EMBEDDING, Need.CLASSIFIER}:
            if spec.classifier is None:
                raise ValueError("the model has no linear classifier, so it gives neither embedding nor classifier")
            self._classifier = _part(model, spec.classifier)
        if Need.FEATURES in needs:
            self._features = [None] * len(chosen)
            for slot, stage in enumerate(chosen):
                self._keep_output(stage, self._features, slot)
        if Need.PREACT in needs:
            self._preact = [None] * len(chosen)
            self._entering = [None] * len(chosen)
            ends = _final_activations(model, spec, chosen)
            for slot, stage in enumerate(chosen):
                self._keep_preactivation(stage, ends.get(stage.path), slot)
        if Need.EMBEDDING in needs and self._classifier is not None:
            self._embedding = [None]
            self._keep_input(self._classifier, self._embedding, 0)
        if Need.MAP in needs:
            if spec.map is None:
                raise ValueError("the model's embedding is not the mean of a map, so it gives none")
            self._map = [None]
            self._keep_output(spec.map, self._map, 0)
            self._map_stage = spec.map
        if Need.QKV in needs:
            self._qkv = [None] * len(chosen)
            for slot, stage in enumerate(chosen):
                self._keep_qkv(stage, slot)
        if Need.PATCH_LOGITS in needs:
            self._last_tokens = [None]
            self._prefix, self._patch_head = self._keep_last_tokens(spec)
        if needs & {Need.DISTILLATION_HEAD, Need.TOKEN_HEADS} and hasattr(model, "set_distilled_training"):
            distilled: Any = model
            before = bool(distilled.distilled_training)
            distilled.set_distilled_training(True)
            self._undo.append(lambda: distilled.set_distilled_training(before))

    def spares(self, visible: Visible | None) -> bool:
        """Whether the model would be kept to what is visible."""
        return self._thinning.admits(visible)

    def __call__(
        self,
        images: Tensor,
        target: Tensor | None = None,
        create_graph: bool = False,
        visible: Visible | None = None,
    ) -> Signals:
        """The signals of a batch, in whatever mode the model is.

        Args:
            images: [B, channels, height, width].
            target: [B], read for INPUT_GRADIENT only.
            create_graph: gradients by the images can themselves be differentiated; needs gradients to be enabled.
            visible: keeps the pass to these cells, where the model can be kept to them (`View.sparse`).

        Raises:
            ValueError: INPUT_GRADIENT without a target, or `create_graph` where gradients are disabled;
                DISTILLATION_HEAD or TOKEN_HEADS of a model that gives one output in training.
        """
        self._awake, self._passed = True, 0
        self._thinning.begin(visible)
        stops = self._stops and not self.model.training
        if not stops:
            self._enough = 0
        try:
            if self.needs & DIFFERENTIATED:
                return self._with_gradient(images, target, create_graph)
            answer = self.model(images)
            if stops:
                self._enough = self._passed
            return self._collect(answer)
        except _Enough:
            return self._collect(images.new_empty(len(images), 0))
        finally:
            self._awake = False
            self._thinning.end()
            for slots in (
                self._features,
                self._preact,
                self._entering,
                self._embedding,
                self._map,
                self._qkv,
                self._last_tokens,
            ):
                slots[:] = [None] * len(slots)

    def _pass(self) -> None:
        """A stage has ended: the pass does too, where it is the last that is read."""
        self._passed += 1
        if self._passed == self._enough:
            raise _Enough

    def close(self) -> None:
        """Remove every hook and put the model's switches back. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _collect(self, output: Any) -> Signals:
        logits = first_tensor(output)
        if logits is None:
            raise ValueError(f"the model must answer with logits, not with {type(output).__name__}")
        heads: list[Tensor] = []
        if self.needs & {Need.DISTILLATION_HEAD, Need.TOKEN_HEADS} and self.model.training:
            if not isinstance(output, tuple | list) or len(output) < 2:
                raise ValueError("the model gives no second head in training: it is not distilled by a token")
            heads = list(output[1:])
        classifier = None
        if Need.CLASSIFIER in self.needs:
            last: Any = self._classifier
            classifier = (last.weight.flatten(1), last.bias)
        return Signals(
            logits=logits,
            features=_all(self._features),
            preact=_all(self._preact),
            embedding=_all(self._embedding)[0].flatten(1) if self._embedding else None,
            map=to_map(_all(self._map)[0], self._map_stage) if self._map else None,
            classifier=classifier,
            distillation_head=heads[0] if heads and Need.DISTILLATION_HEAD in self.needs else None,
            token_heads=heads if Need.TOKEN_HEADS in self.needs else [],
            patch_logits=self._patch_head(_all(self._last_tokens)[0][:, self._prefix :]) if self._last_tokens else None,
            qkv=_all(self._qkv),
        )

    def _with_gradient(self, images: Tensor, target: Tensor | None, create_graph: bool) -> Signals:
        """As `_collect`, with the gradients by the images that are asked for. They are enabled for this one pass."""
        if target is None and Need.INPUT_GRADIENT in self.needs:
            raise ValueError("the input gradient is that of the true class' logit: pass the target")
        wanted = torch.is_grad_enabled()
        if create_graph and not wanted:
            raise ValueError("create_graph has no meaning where gradients are disabled")
        # Fused attention kernels have no second derivative; for this model's pass the plain one is taken.
        attention = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
        with torch.enable_grad():
            if not images.requires_grad:
                images = images.detach().requires_grad_()
            with attention:
                signals = self._collect(self.model(images))
            asked: list[Tensor] = []
            if Need.INPUT_GRADIENT in self.needs and target is not None:
                asked.append(signals.logits.gather(1, target.unsqueeze(1)).sum())
            if Need.ATTENTION_GRADIENT in self.needs:
                asked += [
                    attention_map(to_map(x, stage)).flatten(1).amax(1).sum()
                    for x, stage in zip(signals.features, self._stages, strict=True)
                ]
            gradients = [
                torch.autograd.grad(
                    value, images, create_graph=create_graph, retain_graph=wanted or k + 1 < len(asked)
                )[0]
                for k, value in enumerate(asked)
            ]
        if Need.INPUT_GRADIENT in self.needs:
            signals.input_gradient = gradients.pop(0)
        signals.attention_gradient = gradients
        signals.input = images if wanted and Need.INPUT in self.needs else None
        return signals if wanted else signals.detach()

    def _keep_output(self, stage: StageSpec, slots: Slots, slot: int) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._awake:
                slots[slot] = self._thinning.whole(_channels_first(first_tensor(output), stage))
                self._pass()

        self._handles.append(_part(self.model, stage.path).register_forward_hook(hook))

    def _keep_input(self, module: nn.Module, slots: Slots, slot: int) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._awake:
                slots[slot] = args[0]

        self._handles.append(module.register_forward_pre_hook(hook))

    def _keep_preactivation(self, stage: StageSpec, activation: nn.Module | None, slot: int) -> None:
        """The input of the activation that ends the stage; the stage's output where none does."""
        if activation is None:
            self._keep_output(stage, self._preact, slot)
            return

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # The activation may run several times, in this stage and after it: its last run so far counts.
            if self._awake:
                self._preact[slot] = self._thinning.whole(_channels_first(self._entering[slot], stage))
                self._pass()

        self._keep_input(activation, self._entering, slot)
        self._handles.append(_part(self.model, stage.path).register_forward_hook(hook))
        if getattr(activation, "inplace", False) or activation in _OUT_OF_PLACE:
            _hold_out_of_place(activation)
            self._undo.append(lambda: _release(activation))

    def _keep_qkv(self, stage: StageSpec, slot: int) -> None:
        if not stage.heads:
            raise ValueError(
                f"stage {stage.path!r} has no self-attention over its tokens with one linear layer `qkv`, "
                "so it gives no queries, keys and values"
            )
        attention: Any = _part(self.model, stage.attention)

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self._awake:
                self._qkv[slot] = _split_qkv(attention, output, stage)
                self._pass()

        self._handles.append(attention.qkv.register_forward_hook(hook))

    def _keep_last_tokens(self, spec: ModelSpec) -> tuple[int, nn.Module]:
        """Keeps what the model's final norm gives; the number of prefix tokens and the head of the distillation token.

        The layers go by the names that timm's distilled transformers have for them.
        """
        model: Any = self.model
        norm, head = getattr(model, "norm", None), getattr(model, "head_dist", None)
        if not isinstance(norm, nn.Module) or not isinstance(head, nn.Linear) or spec.stages[-1].kind != "token":
            raise ValueError("the model has no head of a distillation token that could read its patch tokens")

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self._awake:
                self._last_tokens[0] = output

        self._handles.append(norm.register_forward_hook(hook))
        return spec.stages[-1].prefix, head


def _split_qkv(attention: Any, output: Tensor, stage: StageSpec) -> Tensor:
    """[B, N, 3 · heads · d] as [B, 3, heads, N, d], queries and keys as they are compared."""
    qkv = output.unflatten(2, (3, stage.heads, stage.head_dim)).permute(0, 2, 3, 1, 4)
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    if all(norm is None or isinstance(norm, nn.Identity) for norm in norms):
        return qkv
    q, k, v = qkv.unbind(1)
    q, k = (x if norm is None else norm(x) for x, norm in zip((q, k), norms, strict=True))
    return torch.stack((q, k, v), 1)


def _part(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"the model has no module {path!r}; was the spec measured on another one?") from None


def _all(slots: Slots) -> list[Tensor]:
    found = [tensor for tensor in slots if tensor is not None]
    if len(found) < len(slots):
        raise RuntimeError("the model left out a stage in this pass; its signals cannot be tapped")
    return found


def _channels_first(tensor: Tensor | None, stage: StageSpec) -> Tensor | None:
    if tensor is not None and tensor.ndim == 4 and tensor.shape[1] != stage.channels == tensor.shape[3]:
        return tensor.permute(0, 3, 1, 2)
    return tensor


_OUT_OF_PLACE: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""In-place activations that are held out of place, and by how many taps."""


def _hold_out_of_place(activation: nn.Module) -> None:
    _OUT_OF_PLACE[activation] = _OUT_OF_PLACE.get(activation, 0) + 1
    activation.inplace = False  # type: ignore[assignment]


def _release(activation: nn.Module) -> None:
    _OUT_OF_PLACE[activation] -= 1
    if not _OUT_OF_PLACE[activation]:
        del _OUT_OF_PLACE[activation]
        activation.inplace = True  # type: ignore[assignment]


def _final_activations(model: nn.Module, spec: ModelSpec, stages: Sequence[StageSpec]) -> dict[str, nn.Module]:
    """By stage path, the activation module whose output is the stage's output, unchanged. Found in a dry run."""
    ends: dict[str, nn.Module] = {}
    latest: tuple[nn.Module, Tensor, int] | None = None

    def activated(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal latest
        latest = (module, output, output._version)

    def ended(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # A later in-place addition hands on the same tensor under a higher version.
            if latest is not None and first_tensor(output) is latest[1] and latest[1]._version == latest[2]:
                ends[path] = latest[0]

        return hook

    handles = [m.register_forward_hook(activated) for m in model.modules() if _is_activation(m)]
    handles += [_part(model, stage.path).register_forward_hook(ended(stage.path)) for stage in stages]
    try:
        with evaluating(model), torch.no_grad():
            model(ramp_images(model, spec.input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return ends


def _is_activation(module: nn.Module) -> bool:
    kinds = type(module).__mro__  # a subclass may live anywhere
    return any(k.__module__ in _ACTIVATIONS and k.__name__ not in _NOT_ACTIVATIONS for k in kinds)
