"""Every error that rlmon raises on purpose.

::

    RLMonError
    ├── ConfigError            a setting is unknown, of the wrong type or contradicts another (also ValueError)
    ├── AttachError            this trainer, this TRL or this machine cannot be monitored as asked
    ├── RunLogError            a run directory cannot be read or written (also OSError)
    │   └── SchemaError        it was written by another schema
    ├── ReadError              what was given to audit is no run that can be read (also OSError)
    ├── WeightsError           weights cannot be read or written, or two models do not fit (also OSError)
    ├── TrackerError           a tracker's server cannot be reached, or refuses
    └── MissingExtraError      an optional dependency is not installed (also ImportError)

All of them are raised *before* the first training step or by commands; nothing here is raised into a running
training loop. Each message says what came, what was needed and what to type.
"""

from __future__ import annotations


class RLMonError(Exception):
    """Root of rlmon's own errors."""


class ConfigError(RLMonError, ValueError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class AttachError(RLMonError):
    """This trainer cannot be monitored as asked."""


class RunLogError(RLMonError, OSError):
    """A run directory cannot be read or written."""


class SchemaError(RunLogError):
    """A run directory was written by a schema that this version cannot read."""


class ReadError(RLMonError, OSError):
    """What was given to audit is not a run, or cannot be read."""


class WeightsError(RLMonError, OSError):
    """Weights of a model cannot be read or written, or those of two models do not fit together."""


class TrackerError(RLMonError):
    """A tracker's server cannot be reached, or does not do what it was asked."""


class MissingExtraError(RLMonError, ImportError):
    """An optional dependency is missing; the message has the pip line."""
