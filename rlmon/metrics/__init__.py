"""Pure functions from captured arrays and texts to sums, and from sums to the numbers of the catalogue.

Only :mod:`rlmon.metrics.tokens` touches torch, and only inside its functions.
"""
