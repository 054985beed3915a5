"""What a network costs: parameters, multiply-accumulates, the memory and the time of an inference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ROUNDS, WARM_UP = 5, 3
ROUND_SECONDS, FEWEST, MOST = 0.04, 3, 50
"""A round takes about so long, with at least and at most so many inferences."""


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions, linear and recurrent layers for one image; normalisation, activations and
    attention products are not counted.

    Runs the model once on a black image in evaluation mode; its own mode comes back afterwards.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from kdsearch.kd_methods.dry_run import evaluating

    aten = torch.ops.aten
    fused: dict[Any, Any] = {aten.mkldnn_rnn_layer: _mkldnn_flops, aten._cudnn_rnn: _cudnn_flops}
    counting = FlopCounterMode(display=False, custom_mapping=fused)
    with evaluating(model), torch.no_grad(), counting as counter:
        model(_black(model, input_shape, 1))
    found = counter.get_flop_counts().get("Global", {})
    return sum(found.get(op, 0) for op in (aten.convolution, aten.mm, aten.addmm, *fused)) // 2


def _mkldnn_flops(steps: Any, from_input: Any, from_state: Any, *args: Any, **kwargs: Any) -> int:
    """Two for each multiply-accumulate of oneDNN's recurrent layer, from the shapes of what it is given."""
    return 2 * steps[0] * steps[1] * (prod(from_input) + prod(from_state))


def _cudnn_flops(steps: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
    """The same of all of cuDNN's recurrent layers at once."""
    return 2 * steps[0] * steps[1] * sum(prod(shape) for shape in weights if len(shape) == 2)


def memory(model: nn.Module, input_shape: tuple[int, int, int], batch: int = 1) -> int:
    """Bytes that an inference holds at most: parameters, buffers, the images, and the activations alive at the peak.

    An activation counts from the operation that makes it until nothing refers to it any more, once however many views
    share it. What kernels use inside themselves and what an allocator rounds up or keeps back are not counted, so that
    the number depends on the network alone and not on the load of the machine.

    Runs the model once on black images in evaluation mode; its own mode comes back afterwards.
    """
    import torch

    from kdsearch.kd_methods.dry_run import evaluating

    images = _black(model, input_shape, batch)
    held = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers(), images)]
    sizes = {storage._cdata: storage.nbytes() for storage in held}
    with evaluating(model), torch.no_grad(), _watched(set(sizes)) as peak:
        model(images)
    return sum(sizes.values()) + peak()


@contextmanager
def _watched(known: set[int]) -> Iterator[Callable[[], int]]:
    """Gives the peak of the bytes of tensors that were made inside, storages in `known` left out."""
    from weakref import finalize

    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    live = peak = 0

    def end(key: int, size: int) -> None:
        nonlocal live
        known.discard(key)
        live -= size

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal live, peak
            out = func(*args, **(kwargs or {}))
            for made in tree_leaves(out):
                if not isinstance(made, Tensor):
                    continue
                storage = made.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in known:
                    known.add(key)
                    live += size
                    peak = max(peak, live)
                    finalize(storage, end, key, size).atexit = False
            return out

    with Watch():
        yield lambda: peak


def latency(
    model: nn.Module, input_shape: tuple[int, int, int], batch: int = 1, device: torch.device | str | None = None
) -> float:
    """Milliseconds of an inference of `batch` images: the smallest of five rounds' medians, after a warm-up.

    On a CPU it runs on one thread, and its clock is that thread's processor time: what one waits on a machine that has
    nothing else to do. On other devices it is the time until the device is done. Whatever disturbs a measurement makes
    it longer, so that medians drop single interruptions and the smallest of them whole disturbed rounds.

    Args:
        device: where to measure a copy; the model itself where it is, without one.
    """
    import copy

    import torch

    from kdsearch.kd_methods.dry_run import evaluating

    images = _black(model, input_shape, batch)
    device = images.device if device is None else torch.empty(0, device=device).device
    if device != images.device:
        model, images = copy.deepcopy(model).to(device), images.to(device)
    on_cpu = device.type == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter

    def once() -> float:
        began = clock()
        model(images)
        if not on_cpu:
            torch.accelerator.synchronize(device)
        return 1e3 * (clock() - began)

    threads = torch.get_num_threads()
    try:
        if on_cpu:
            torch.set_num_threads(1)
        with evaluating(model), torch.inference_mode():
            warm = [once() for _ in range(WARM_UP)][-1]
            count = round(min(max(1e3 * ROUND_SECONDS / max(warm, 1e-6), FEWEST), MOST))
            return min(median(once() for _ in range(count)) for _ in range(ROUNDS))
    finally:
        torch.set_num_threads(threads)


def _black(model: nn.Module, input_shape: tuple[int, int, int], batch: int) -> Tensor:
    """Black images on the model's device and in its type."""
    import torch

    tensors = (*model.parameters(), *model.buffers())
    reference = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    return reference.new_zeros(batch, *input_shape)
