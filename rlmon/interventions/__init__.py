"""Interventions: rules that act on what the monitor sees. Pure folds, off by default.

``policy`` is the language, ``conditions`` decide when a rule acts, ``engine`` folds rounds and steps into actions, and
every action with something to work out has a module of its own. Nothing here touches a trainer: ``rlmon.steering``
runs the folds in a live run, and ``rlmon.trl`` turns the levers.
"""
