"""Every loss as a pure function: tensors in, scalar tensor out, in the manner of `torch.nn.functional`.

The functions stand in the files of their methods; this module finds them by the method's name, so that a new method is
one new file:

>>> import torch
>>> from kdsearch.kd_methods import functional as KF
>>> float(KF.kd(torch.zeros(2, 3), torch.zeros(2, 3), temperature=4.0))
0.0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdsearch.kd_methods.catalogue import METHODS


def __getattr__(name: str) -> Callable[..., Any]:
    if name in METHODS:
        function = METHODS[name].functional
        if function is not None:
            return function
    raise AttributeError(f"no loss function {name!r}; there are: {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return [cls.name for cls in METHODS if cls.functional is not None]
