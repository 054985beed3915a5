"""The figures of the report, one file each: plain data in, a Plotly figure with its caption out."""

from kdsearch.runs.report.figures.adaptive import adaptive
from kdsearch.runs.report.figures.finalists import finalists
from kdsearch.runs.report.figures.history import history
from kdsearch.runs.report.figures.importance import importance, importances
from kdsearch.runs.report.figures.likeness import likeness
from kdsearch.runs.report.figures.parallel import parallel
from kdsearch.runs.report.figures.pareto import pareto
from kdsearch.runs.report.figures.reasons import reasons
from kdsearch.runs.report.figures.rungs import agreement, costs
from kdsearch.runs.report.figures.style import Panel
from kdsearch.runs.report.figures.tree import tree

__all__ = [
    "Panel",
    "adaptive",
    "agreement",
    "costs",
    "finalists",
    "history",
    "importance",
    "importances",
    "likeness",
    "parallel",
    "pareto",
    "reasons",
    "tree",
]
