"""Networks on disk and in memory: building students, content hashes, safe checkpoints."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdsearch.errors import TrialFailure, UserError
from kdsearch.kd_methods import METHODS
from kdsearch.runs.data import Data
from kdsearch.runs.fidelity import Keep
from kdsearch.runs.network import Network
from kdsearch.runs.settings import Settings
from kdsearch.runs.thinning import thin
from kdsearch.search_space.recipe import Node, Recipe
from kdsearch.search_space.students.family import STUDENTS
from kdsearch.search_space.students.transforms import TRANSFORMS

InputShape = tuple[int, int, int]


def branches(recipe: Recipe) -> frozenset[str]:
    """Edits that the recipe's methods ask of the student."""
    nodes = (*recipe.terms.values(), *recipe.policies.values())
    return frozenset().union(*(METHODS[node.name].branches for node in nodes))


def shown(recipe: Recipe) -> float:
    """Share of the image side that the student sees."""
    node = recipe.policies["data"]
    return float(METHODS[node.name](**node.hyper).policy().student_resolution)  # type: ignore[attr-defined]


def input_shape(recipe: Recipe, data: Data) -> InputShape:
    """What the student is shown: the data's images, or smaller ones where only the teacher sees all of them."""
    share = shown(recipe)
    channels, height, width = data.input_shape
    return channels, max(1, round(height * share)), max(1, round(width * share))


def student(recipe: Recipe, data: Data) -> nn.Module:
    """The recipe's student with fresh weights, with the edits that its methods ask for.

    Raises:
        TrialFailure: the family cannot be built so ("invalid").
    """
    return build_of(recipe, input_shape(recipe, data), data.classes)


def build_of(recipe: Recipe, shape: InputShape, classes: int) -> nn.Module:
    """The recipe's student with fresh weights at this input and these classes.

    Raises:
        TrialFailure: the family cannot be built so ("invalid").
    """
    return build(recipe.student, recipe.transform, shape, classes, branches(recipe))


def residual(recipe: Recipe, size: float) -> Recipe:
    """The recipe on a student with this share of the channels.

    Raises:
        TrialFailure: the family has none ("invalid").
    """
    family = STUDENTS[recipe.student.name](**recipe.student.hyper)
    smaller = family if size >= 1 else family.thinned(size)
    if smaller is None:
        raise TrialFailure("invalid", f"student family {family.name!r} has no smaller network to correct it")
    return replace(recipe, student=Node(smaller.name, smaller.hyper))


def build(
    student: Node, transform: Node, shape: InputShape, classes: int, asked: frozenset[str] = frozenset()
) -> nn.Module:
    """The module of a family at this input and these classes.

    Raises:
        TrialFailure: the family cannot be built so ("invalid").
    """
    try:
        module = STUDENTS[student.name](**student.hyper).build(shape, classes, branches=asked)
        return TRANSFORMS[transform.name](**transform.hyper).apply(module)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TrialFailure("invalid", f"student {student.name}: {str(error).splitlines()[0]}") from None


def thinned(recipe: Recipe, data: Data, keep: Keep, seed: int) -> tuple[nn.Module, str]:
    """The student under a random structured mask that leaves `keep` of its channels, and a note on how."""
    family = STUDENTS[recipe.student.name](**recipe.student.hyper)
    transform = TRANSFORMS[recipe.transform.name](**recipe.transform.hyper)
    try:
        shape = input_shape(recipe, data)
        return thin(family, transform, shape, data.classes, keep, seed, branches=branches(recipe))
    except (ValueError, TypeError, RuntimeError) as error:
        raise TrialFailure("invalid", f"student {recipe.student.name}: {str(error).splitlines()[0]}") from None


def network(module: nn.Module, data: Data, settings: Settings, *, side: int | None = None) -> Network:
    """The module under the data set's own normalisation, in the memory format that pays; `side` resizes its inputs."""
    side = None if side == data.input_shape[-1] else side
    last = settings.use_channels_last(data.device, side or data.input_shape[-1]) and not _fragile(module, data)
    return Network(module, data.mean, data.std, side=side, channels_last=last)


def _fragile(module: nn.Module, data: Data) -> bool:
    """Whether channels_last may crash: the backward pass of a strided 1×1 convolution of few channels does on CPUs.

    Seen in torch 2.15: a segmentation fault with 1 to 4 input channels, none with 8.
    """
    strided = (
        m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1
    )
    return data.device.type == "cpu" and any(m.in_channels < 8 for m in strided)


def state_hash(module: nn.Module) -> str:
    """Names a module's weights by their content."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        )
    return digest.hexdigest()[:12]


def save(module: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the weights as safetensors; the file appears whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    save_file(tensors, str(partial), metadata=metadata or {})
    partial.replace(path)


def read_state(path: Path) -> dict[str, Any]:
    """Weights of a checkpoint: safetensors, or torch's format read with `weights_only=True`.

    Raises:
        UserError: missing, unreadable, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"checkpoint: there is no file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"checkpoint: {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"checkpoint: {str(path)!r} holds no table of tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load(module: nn.Module, path: Path) -> None:
    """Fill a module from a checkpoint.

    Raises:
        UserError: the checkpoint belongs to another architecture; the message names the first difference.
    """
    state = read_state(path)
    own = module.state_dict()
    missing, odd = [k for k in own if k not in state], [k for k in state if k not in own]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or odd or shapes:
        if shapes:
            first = (
                f"{shapes[0]} is {tuple(state[shapes[0]].shape)} there and {tuple(own[shapes[0]].shape)} in the model"
            )
        else:
            first = f"{missing[0]} is missing there" if missing else f"{odd[0]} is unknown to the model"
        count = len(missing) + len(odd) + len(shapes)
        raise UserError(f"checkpoint: {str(path)!r} is of another architecture: {first} ({count} differences)")
    module.load_state_dict(state)
