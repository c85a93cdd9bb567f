"""Interventions: rules that act on what the monitor sees. Pure folds, off by default.

``policy`` is the language, ``conditions`` decide when a rule acts, every intervention is one class in a module of its
own (``intervention`` says what is asked of it), and ``fold`` folds rounds and steps into acts. Nothing here touches
a trainer: ``rlmon.controller`` runs the folds in a live run, and ``rlmon.trl`` turns what a trainer has.
"""

from rlmon.interventions.intervention import Intervention, Round, RowAct, RowChange, RuleState, RunSoFar, setting

__all__ = ["Intervention", "Round", "RowAct", "RowChange", "RuleState", "RunSoFar", "setting"]
