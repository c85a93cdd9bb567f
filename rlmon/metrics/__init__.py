"""Pure functions from captured arrays and texts to sums, and from sums to the numbers of the catalogue.

A family of metrics is one object (``MetricFamily``): rlmon's own are in :mod:`rlmon.metrics.families`, and one of yours
is given to ``Monitor`` or ``RLMon``. Only :mod:`rlmon.metrics.tokens` touches torch, and only inside its functions.
"""

from rlmon.metrics.completion import CompletionMetric
from rlmon.metrics.family import Metric, MetricFamily, Numbers, RankRows, RoundRows, StepSums

__all__ = ["CompletionMetric", "Metric", "MetricFamily", "Numbers", "RankRows", "RoundRows", "StepSums"]
