"""Which channels of a network are one and the same unit, found by sending labels through it in place of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdsearch.kd_methods.dry_run import evaluating
from kdsearch.search_space.students.growth.labels import Labels, along

Chains = tuple[tuple[str, ...], ...]
"""Layers one after another whose sum a tensor is: if the last of each gives zero, so does the tensor."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVES = _words(
    "cat concat chunk split tensor_split view view_as reshape flatten unflatten transpose swapaxes permute movedim t "
    "unbind __getitem__ squeeze unsqueeze expand expand_as contiguous stack narrow select roll flip clone detach to"
)
INSPECTS = _words(
    "__get__ size dim ndimension numel nelement stride is_contiguous is_floating_point is_complex storage_offset "
    "element_size get_device __len__ __hash__"
)


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a layer with parameters.

    Attributes:
        path: its module.
        kind: "dense", "depthwise" or "norm".
        given, made: labels of its inputs and outputs. A dense layer makes new ones.
        resizes: its output has other sides than its input.
    """

    path: str
    kind: str
    given: Tensor
    made: Tensor
    resizes: bool = False


class Trace(Labels, TorchFunctionMode):
    """The units of a network; active while it runs.

    Attributes:
        axes: sites along the axes of each parameter and buffer, None where an axis has no units.
        even: sites whose units must have equally many copies.
        queries: number of channels in a head, by label of a query.
        layers: calls of layers with parameters, in order.
        events: these, and labels that were rectified ("relu") or otherwise changed ("other"), in order.
        silent: layers of `extra` modules that end the branch of a residual block.
        residual: modules whose branches these are.
    """

    def __init__(self, model: nn.Module, extra: frozenset[str]) -> None:
        super().__init__()
        self.axes: dict[str, tuple[str | None, ...]] = {}
        self.even: set[str] = set()
        self.queries: dict[int, int] = {}
        self.layers: list[Layer] = []
        self.events: list[Layer | tuple[str, Tensor]] = []
        self.silent: list[str] = []
        self.residual: list[str] = []
        self._extra = extra
        self._names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
        self._modules: list[str] = [""]
        self._chains: dict[int, tuple[Tensor, Chains]] = {}

    def enter(self, path: str) -> None:
        self._modules.append(path)

    def leave(self) -> None:
        self._modules.pop()

    def know(self, x: Tensor, chains: Chains = ()) -> Tensor:
        # The tensor is kept, so that no other gets its id.
        self._chains[id(x)] = (x, chains)
        return x

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in _flat((*args, *kwargs.values())) if isinstance(t, Tensor)]
        labelled = any(id(t) in self._chains for t in tensors)
        if not labelled and not any(id(t) in self._names for t in tensors):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name in INSPECTS:
            found = func(*args, **kwargs)
            return self.know(found) if labelled and isinstance(found, Tensor) else found
        if name in RULES:
            return RULES[name](self, func, *args, **kwargs)
        if name in MOVES:
            found = func(*self._labelled(args), **kwargs)
            for t in _flat((found,)):
                if isinstance(t, Tensor):
                    self.know(t)
            return found
        raise ValueError(f"channels cannot be followed through {name} in {self._modules[-1] or 'the network'}")

    def _labelled(self, args: Iterable[Any]) -> tuple[Any, ...]:
        """The arguments with labels in place of parameters such as position embeddings."""
        return tuple(
            type(a)(self._labelled(a)) if isinstance(a, tuple | list) and type(a) in (tuple, list) else self._token(a)
            for a in args
        )

    def _token(self, value: Any) -> Any:
        name = self._names.get(id(value))
        if name is None or not isinstance(value, Tensor):
            return value
        if value.ndim != 3:
            raise ValueError(f"channels cannot be followed through the parameter {name}")
        known = self.sites.get(f"{name}:units")
        labels = self.know(self.fresh(value.shape, 2) if known is None else known.expand(value.shape))
        self.record(f"{name}:units", labels, 2)
        self.axes[name] = (None, None, f"{name}:units")
        return labels

    def _parameters(self, values: Iterable[Any]) -> list[tuple[str, Tensor]]:
        return [(self._names[id(t)], t) for t in _flat(values) if isinstance(t, Tensor) and id(t) in self._names]

    def product(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A linear or convolutional layer."""
        found = self._parameters((*args, *kwargs.values()))
        weights = [(name, t) for name, t in found if t.ndim > 1]
        if len(weights) != 1:
            raise ValueError(f"channels cannot be followed through {func.__name__} in {self._modules[-1]}")
        name, weight = weights[0]
        path = name.rpartition(".")[0]
        dim = x.ndim - 1 if func.__name__ == "linear" else 1
        shape = func(x.to(weight.dtype), *args, **kwargs).shape
        inputs, outputs = x.shape[dim], shape[dim]
        depthwise = dim == 1 and weight.ndim > 2 and weight.shape[1] == 1 and inputs == outputs > 1
        if depthwise:
            given = made = self.record(f"{path}:units", x, dim)
            y = along(given, shape, dim)
            sites: tuple[str, str | None] = (f"{path}:units", None)
        elif weight.shape[1] == inputs:
            given = self.record(f"{path}:in", x, dim)
            y = self.fresh(shape, dim)
            made = self.record(f"{path}:out", y, dim)
            sites = (f"{path}:out", f"{path}:in")
        else:
            raise ValueError(f"{path} has groups of channels, which cannot be widened")
        for entry, t in found:
            self.axes[entry] = (*sites, *[None] * (t.ndim - 2)) if t.ndim > 1 else sites[:1]
        resizes = dim == 1 and tuple(shape[2:]) != tuple(x.shape[2:])
        self._log(Layer(path, "depthwise" if depthwise else "dense", given, made, resizes))
        return self.know(y, ((path,),) if path in self._extra else ())

    def norm(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Batch or layer normalisation."""
        found = self._parameters((*args, *kwargs.values()))
        path = found[0][0].rpartition(".")[0] if found else self._modules[-1]
        layered = func.__name__ == "layer_norm"
        site = f"{path}:units"
        if layered and any(t.ndim > 1 for _, t in found):
            raise ValueError(f"{path} normalises over more than the last dimension")
        given = self.record(site, x, x.ndim - 1 if layered else 1)
        if layered:
            self.even.add(site)
        for entry, _ in found:
            self.axes[entry] = (site,)
        self._log(Layer(path, "norm", given, given))
        chains = self._chains[id(x)][1] if path in self._extra else ()
        return self.know(x.view_as(x), tuple((*chain, path) for chain in chains))

    def keep(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What leaves values as they are in evaluation mode."""
        return x

    def blank(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Zeros of the same shape: channels that nothing makes."""
        return self.know(self.fresh(x.shape, 1 if x.ndim == 4 else x.ndim - 1))

    def activate(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A function of each value by itself."""
        self.events.append(("relu" if func.__name__ in ("relu", "relu_") else "other", x.unique()))
        return self.know(x.view_as(x))

    def combine(self, func: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A sum or product: with a number nothing changes, else both sides are the same units."""
        a, b = self._labelled((a, b))
        x = a if isinstance(a, Tensor) and id(a) in self._chains else b
        other = b if x is a else a
        if isinstance(other, int | float):
            self.events.append(("other", x.unique()))
            return self.know(x.view_as(x))
        if id(other) not in self._chains:
            raise ValueError(f"channels cannot be followed through {func.__name__} in {self._modules[-1]}")
        left, right = torch.broadcast_tensors(a, b)
        self.join(left, right)
        self.events.append(("other", left.unique()))
        chains = self._end_branches(self._chains[id(a)][1], self._chains[id(b)][1]) if "add" in func.__name__ else ()
        return self.know(left.view_as(left), chains)

    def _end_branches(self, left: Chains, right: Chains) -> Chains:
        """A sum in an extra module is a residual block's if one side comes from outside: the other is its branch."""
        module = self._modules[-1]
        if module not in self._extra:
            return ()
        if left and right:
            return left + right
        for chain in left + right:
            self.silent.append(chain[-1])
            self.residual.append(module)
        return ()

    def pool(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What changes the sides of maps and leaves the channels alone."""
        shape = func(x, *args, **kwargs).shape
        if shape[:2] != x.shape[:2] or len(shape) != x.ndim:
            raise ValueError(f"channels cannot be followed through {func.__name__} in {self._modules[-1]}")
        first = x.flatten(2)[..., :1].unflatten(2, [1] * (x.ndim - 2)) if x.ndim > 2 else x
        self.join(first.expand_as(x), x)
        self.events.append(("other", first.unique()))
        return self.know(first.expand(shape), self._chains[id(x)][1])

    def mean(self, func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
        """An average over places."""
        if dim is None:
            raise ValueError(f"channels cannot be followed through a mean over all in {self._modules[-1]}")
        kept = x.amax(dim, keepdim=True)
        self.join(kept.expand_as(x), x)
        self.events.append(("other", kept.unique()))
        return self.know(x.amax(dim, keepdim=keepdim))

    def attend(self, func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Scaled dot-product attention, [B, heads, N, D]: queries and keys of a head are multiplied one by one."""
        path = self._modules[-1]
        made = value[:, :, :1].expand(*value.shape[:2], query.shape[2], value.shape[3])
        for head in range(query.shape[1]):
            for label in query[:, head].unique().long().tolist():
                self.queries[label] = query.shape[3]
            queries = self.record(f"{path}:query {head}", query[:, head], 2)
            self.join(queries, self.record(f"{path}:key {head}", key[:, head], 2))
            self.record(f"{path}:value {head}", value[:, head], 2)
            self.even.add(f"{path}:query {head}")
        return self.know(made.clone())

    def _log(self, layer: Layer) -> None:
        self.layers.append(layer)
        self.events.append(layer)


def trace(model: nn.Module, input_shape: tuple[int, int, int], extra: frozenset[str] = frozenset()) -> Trace:
    """The units of a network in evaluation mode.

    Args:
        extra: modules whose residual branches are to be told apart.

    Raises:
        ValueError: an operation that channels cannot be followed through.
    """
    found = Trace(model, extra)
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_calling(found.enter, path)))
        handles.append(module.register_forward_hook(lambda *_: found.leave(), always_call=True))
    try:
        with torch.no_grad(), evaluating(model):
            image = found.know(found.fresh((1, *input_shape), 1))
            with found:
                model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _calling(function: Callable[[str], None], path: str) -> Callable[[nn.Module, Any], None]:
    return lambda module, args: function(path)


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _flat(value)
        else:
            yield value


RULES: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(_words("linear conv1d conv2d"), Trace.product),
    **dict.fromkeys(_words("batch_norm layer_norm"), Trace.norm),
    **dict.fromkeys(_words("dropout dropout2d"), Trace.keep),
    **dict.fromkeys(
        _words("relu relu_ relu6 hardtanh gelu silu hardswish hardsigmoid sigmoid tanh elu leaky_relu softplus mish"),
        Trace.activate,
    ),
    **dict.fromkeys(
        _words("add add_ __add__ __radd__ __iadd__ mul mul_ __mul__ __rmul__ __imul__ sub __sub__ div __truediv__"),
        Trace.combine,
    ),
    **dict.fromkeys(
        _words("avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate pad"), Trace.pool
    ),
    "zeros_like": Trace.blank,
    "mean": Trace.mean,
    "scaled_dot_product_attention": Trace.attend,
}
