"""Finding prunable axes by tracing: a recorded graph, labels carried through it, one small rule per operator."""

from structprune.axes.graph import Example, Graph, as_example
from structprune.axes.propagate import LabelledGraph, propagate
from structprune.axes.rules import RULES
from structprune.axes.trace import trace

__all__ = ["RULES", "Example", "Graph", "LabelledGraph", "as_example", "propagate", "trace"]
