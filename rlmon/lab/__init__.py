"""The offline laboratory: a tiny base model, a verifiable task and the demo that collapses it on purpose.

Everything here runs on one CPU thread without a network.
"""
