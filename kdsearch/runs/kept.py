"""Tensors that are made once: kept in a file that is named by their content, beside the seconds that they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdsearch.runs.assistants import Costs


def tensors(
    path: Path, make: Callable[[], Mapping[str, Tensor] | None], device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], Costs] | None:
    """What this file holds and what it cost; made first where there is no such file, None where nothing comes of that.

    Processes that want it at once may each make it, and the last one's stays. The file appears whole or not at all.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    charged = 0.0
    if not path.exists():
        began = time.perf_counter()
        made = make()
        if made is None:
            return None
        charged = time.perf_counter() - began
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{time.time_ns()}")
        values = {name: value.detach().cpu().contiguous() for name, value in made.items()}
        save_file(values, str(partial), metadata={"seconds": str(charged)})
        partial.replace(path)
    with safe_open(str(path), "pt", device=str(device)) as file:
        seconds = float((file.metadata() or {}).get("seconds", 0.0))
        return {name: file.get_tensor(name) for name in file.keys()}, Costs(seconds, charged)  # noqa: SIM118 (no mapping)
