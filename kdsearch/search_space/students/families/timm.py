"""Any network of the timm library, by its name there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.parameters import Text
from kdsearch.registry import nearest
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn


@register
class Timm(StudentFamily):
    """A timm model with random weights; nothing is downloaded. A search draws from the models that its config lists.

    Transformers that are tied to an input size are built for the data's, and take others where timm lets them.
    """

    name = "timm"
    title = "PyTorch Image Models"
    paper = "https://github.com/huggingface/pytorch-image-models"
    year = 2019

    model: str = Text("resnet18", doc="model name, as timm.list_models() has it")

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        import timm

        if not timm.is_model(self.model):
            raise ValueError(f"timm has no model {self.model!r}; {_nearest(self.model)}")
        cfg = timm.get_pretrained_cfg(self.model)
        tries: list[dict[str, Any]] = [{}]
        if cfg is not None and cfg.fixed_input_size:
            size = {"img_size": input_shape[1:]}
            # The two names under which timm's transformers let go of their input size; some have neither.
            tries = [{**size, "dynamic_img_size": True}, {**size, "strict_img_size": False}, size, {}]
        for options in tries:
            try:
                model = timm.create_model(
                    self.model, pretrained=False, num_classes=classes, in_chans=input_shape[0], **options
                )
                _run(model, input_shape)
                return model
            except TypeError as error:
                if options == tries[-1] or "unexpected keyword" not in str(error):
                    raise ValueError(f"timm cannot build {self.model!r} for {input_shape}: {error}") from error
            except (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
                raise ValueError(f"timm cannot build {self.model!r} for {input_shape}: {error}") from error
        raise AssertionError("the last try returns or raises")


def _run(model: nn.Module, input_shape: InputShape) -> None:
    """One black image: a network may be built for an input that its layers then cannot take."""
    import torch

    from kdsearch.kd_methods.dry_run import evaluating

    with evaluating(model), torch.no_grad():
        model(torch.zeros(1, *input_shape))


def _nearest(name: str) -> str:
    import timm

    hint = nearest(name, timm.list_models())
    # Nobody reads a thousand names in an error message.
    return hint if hint.startswith("did you mean") else "timm.list_models() lists all names"
