"""The student as an ONNX file, its input normalisation included: images in [0, 1] to logits."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from kdsearch.errors import UserError
from kdsearch.runs.retrain import load_student


class Normalised(nn.Module):
    """The student behind its own normalisation."""

    def __init__(self, student: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.student = student
        self.mean = nn.Buffer(torch.tensor(mean).view(1, -1, 1, 1))
        self.std = nn.Buffer(torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.student((images - self.mean) / self.std)


def write_onnx(run_dir: Path, path: Path) -> None:
    """Export the student that a run has left; the batch size stays free.

    Raises:
        UserError: onnx is not installed, or the run has left no student.
    """
    try:
        import onnx  # noqa: F401 (torch's exporter needs it and says so less clearly)
    except ImportError:
        raise UserError("export: onnx is not installed; pip install 'kdsearch[onnx]'") from None
    card = json.loads((run_dir / "student.json").read_text()) if (run_dir / "student.json").exists() else {}
    model = Normalised(load_student(run_dir), card["mean"], card["std"]).eval()
    example = torch.zeros(1, *card["input_shape"])
    torch.onnx.export(
        model,
        (example,),
        str(path),
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}},
        dynamo=False,
    )
