"""kdsearch: automated search for knowledge-distillation recipes.

    import kdsearch

    run = kdsearch.search("config.yaml", run_dir="runs/mine")
    print(run.best.equation())
    student = kdsearch.distill(run.best)

Importing the package is cheap: torch, Optuna and the rest load where they are used; Ray and NNI only if asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdsearch.api import Recipe, Run, SearchSpace, distill, load_recipe, load_student, resume, search

__version__ = "0.1.0"
__all__ = ["Recipe", "Run", "SearchSpace", "distill", "load_recipe", "load_student", "resume", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kdsearch import api

        return getattr(api, name)
    raise AttributeError(f"module 'kdsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
