"""The limit on processor time: it is kept, and is not lost where the interpreter frees objects."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from kdsearch.runs.deadline import deadline


class Thing:
    pass


class Slow:
    def __del__(self) -> None:
        spend()


def spend() -> None:
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
        pass


def by_calls() -> None:
    spend()


def by_weak_references() -> None:
    """Nearly all of its function calls are made by the interpreter as it drops what has died."""
    kept: weakref.WeakKeyDictionary[Thing, int] = weakref.WeakKeyDictionary()
    for _ in range(200):
        thing = Thing()
        kept[thing] = 0
        for _ in range(200):
            pass
        del thing


def by_finalisers() -> None:
    for _ in range(3):
        Slow()
    spend()


def closed() -> Iterator[int]:
    try:
        yield 0
    finally:
        spend()


def by_closed_generators() -> None:
    for _ in range(3):
        next(closed())
    spend()


def by_deaf_code() -> None:
    for _ in range(9):
        try:  # noqa: SIM105 - leaving `suppress` would be one more place to raise it, and outside
            spend()
        except TimeoutError:
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", [by_calls, by_weak_references, by_finalisers, by_closed_generators, by_deaf_code])
def test_the_limit_is_kept(work: Callable[[], None]) -> None:
    began = time.thread_time()

    def limited() -> None:
        with deadline(0.05):
            while time.thread_time() < began + 5:
                work()

    with pytest.raises(TimeoutError, match=r"not done within 0.05 s"):
        limited()
    assert time.thread_time() < began + 2


def test_what_ends_in_time_is_left_alone_and_so_is_the_profiler() -> None:
    def profiler(*_: object) -> None:
        pass

    sys.setprofile(profiler)
    try:
        with deadline(60) as in_time:
            spend()
            in_time()
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
