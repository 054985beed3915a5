"""A tabulated benchmark of recipes: every recipe of a small space trained beforehand, so that searches take seconds.

>>> from kdsearch.runs import bench
>>> table = bench.load("benchmarks/kdbench/digits.parquet")  # doctest: +SKIP
"""

from kdsearch.runs.bench.table import Table, load

__all__ = ["Table", "load"]
