"""Growing networks of depthwise, shuffled and searched blocks: what they compute stays."""

from __future__ import annotations

import pytest

from tests.search_space.grown import Hyper, fresh, learns, preserved, trained

BARE = {"edge02": "none", "edge01": "none", "edge12": "skip_connect"}
"""A cell whose second node is zero."""

GROWN: list[tuple[str, Hyper, Hyper]] = [
    ("mobilenetv2", {"width": 0.125, "last": 8, "depth": 0.25}, {"width": 0.2, "last": 20, "depth": 0.25}),
    ("mobilenetv2", {"width": 0.125, "last": 8, "depth": 0.25}, {"width": 0.125, "last": 8, "depth": 0.5}),
    (
        "mobilenetv2",
        {"width": 0.125, "last": 8, "depth": 0.25, "expansion": 2},
        {"width": 0.2, "last": 9, "depth": 0.7},
    ),
    ("shufflenetv2", {"width": 0.25, "depth": 0.25, "last": 16}, {"width": 0.5, "depth": 0.25, "last": 30}),
    ("shufflenetv2", {"width": 0.25, "depth": 0.25, "last": 16}, {"width": 0.25, "depth": 0.5, "last": 16}),
    ("shufflenetv2", {"width": 0.25, "depth": 0.25, "last": 16}, {"width": 0.4, "depth": 0.75, "last": 16}),
    ("nasbench201", {"channels": 4, "cells": 1}, {"channels": 7, "cells": 1}),
    ("nasbench201", {"channels": 4, "cells": 1}, {"channels": 4, "cells": 3}),
    ("nasbench201", {"channels": 4, "cells": 1, **BARE}, {"channels": 6, "cells": 2, **BARE}),
    (
        "resnet_s1",
        {"blocks1": 1, "blocks2": 1, "blocks3": 1, "width": 0.25},
        {"blocks1": 2, "blocks3": 3, "width": 0.5},
    ),
]


@pytest.mark.parametrize(("family", "less", "more"), GROWN, ids=lambda v: v if isinstance(v, str) else "")
def test_outputs_stay(family: str, less: Hyper, more: Hyper) -> None:
    preserved(trained(fresh(family, less)).double(), fresh(family, more).double())


def test_what_has_grown_trains() -> None:
    less, more = {"channels": 4, "cells": 1}, {"channels": 6, "cells": 2}
    learns(fresh("nasbench201", less), fresh("nasbench201", more), "stages.stage2.2.")
