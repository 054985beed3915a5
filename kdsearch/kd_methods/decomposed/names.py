"""The operators by name. Importing this needs no torch."""

from __future__ import annotations

TRANSFORMS = (
    "identity",
    "multi_scale_1",
    "multi_scale_2",
    "multi_scale_4",
    "local_1",
    "local_2",
    "local_4",
    "batch",
    "channel",
    "mask",
    "spatial_attention",
    "channel_attention",
    "batch_attention",
    "dropout",
    "channel_gram",
    "batch_gram",
    "norm_hw",
    "norm_c",
    "norm_n",
    "softmax_hw",
    "softmax_c",
    "softmax_n",
    "log_softmax_hw",
    "log_softmax_c",
    "log_softmax_n",
    "sqrt",
    "log",
    "pow2",
    "pow4",
    "min_max",
    "abs",
    "sigmoid",
    "swish",
    "tanh",
    "relu",
    "leaky_relu",
    "mish",
    "exp",
    "halve",
    "batch_norm",
)
"""KD-Zero's forty, three of which make a chain."""

OF_MAPS = frozenset(
    {
        "multi_scale_1",
        "multi_scale_2",
        "multi_scale_4",
        "local_1",
        "local_2",
        "local_4",
        "channel",
        "mask",
        "spatial_attention",
    }
)
"""They take maps [B, C, H, W] alone."""

OF_ROWS = OF_MAPS | {"batch", "channel_gram", "norm_hw", "softmax_hw", "log_softmax_hw"}
"""They take no vectors [B, D]: in a chain on embeddings or logits they have no place."""

ON_VECTORS = tuple(name for name in TRANSFORMS if name not in OF_ROWS)
"""What a chain on embeddings or logits can hold."""

DISTANCES = (
    "l2",
    "l1",
    "smooth_l1",
    "pairwise_l2",
    "g_l2",
    "kl_raw",
    "kl_t1",
    "kl_t4",
    "kl_t8",
    "cosine",
    "pearson",
)
