"""Self-contained HTML pages: derived from logs, deletable, readable without a network.

Imports neither torch nor TRL. Everything that a run wrote is data here, never markup: texts go into the page as
JSON and reach the reader through ``textContent``.
"""
