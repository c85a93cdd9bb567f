"""Two models and nothing else: what happened between them, from what both answer to the same prompts.

``sampling`` draws and measures, a batch at a time and resumable; ``paired`` compares prompt by prompt; ``judging`` says
what that comes to; ``telling`` and ``page`` show it.
"""
