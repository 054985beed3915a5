"""A limit on the processor time of code that offers no place to stop it."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

REMOVERS = frozenset({"weakref", "_weakrefset", "torch.utils.weak"})
"""Modules whose functions the interpreter calls when it frees an object."""

GRACE = 0.1
"""Processor seconds for what is passed on the way out to clean up, before the exception is taken to be swallowed."""


@contextmanager
def deadline(seconds: float) -> Iterator[Callable[[], None]]:
    """Raises TimeoutError in this thread once its processor time is over, at a function call of whatever code runs.

    Where the exception is swallowed (the interpreter was freeing an object, say), it is raised again. Gives a function
    that checks the time as well.
    """
    end = time.thread_time() + seconds
    profiler, tracer = sys.getprofile(), sys.gettrace()

    def check() -> None:
        if time.thread_time() > end:
            raise TimeoutError(f"not done within {seconds:g} s")

    def watch(set_next: Callable[[Any], None], frame: FrameType, event: str, argument: object) -> None:
        nonlocal end
        if event == "call" and time.thread_time() > end and not _lost(frame):
            # An exception ends the watch it comes from, so that profiler and tracer take turns.
            set_next(partial(watch, sys.setprofile if set_next is sys.settrace else sys.settrace))
            try:
                check()
            finally:
                end = time.thread_time() + GRACE

    sys.setprofile(partial(watch, sys.settrace))
    try:
        yield check
    finally:
        sys.setprofile(profiler)
        sys.settrace(tracer)


def _lost(frame: FrameType) -> bool:
    """Whether an exception raised here might reach nobody: something is being freed, or a generator closed."""
    code = frame.f_code
    generator = bool(code.co_flags & inspect.CO_GENERATOR)
    return generator or code.co_name == "__del__" or frame.f_globals.get("__name__") in REMOVERS
