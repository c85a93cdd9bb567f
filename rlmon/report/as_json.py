"""An audit as JSON: strict, in ASCII, whatever the texts and the settings of the run hold."""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from rlmon.audit.result import Audit

_SURROGATE = re.compile("[\ud800-\udfff]")


def render(audit: Audit) -> str:
    """One object, described by ``rlmon/audit/schema.json``."""
    return json.dumps(plain(audit.to_json()), allow_nan=False, indent=2) + "\n"


def render_array(*audits: Audit) -> str:
    """An array of such objects, also of one or none: how many come does not depend on which could be read."""
    return json.dumps([plain(audit.to_json()) for audit in audits], allow_nan=False, indent=2) + "\n"


def plain(value: Any) -> Any:
    """``value`` from JSON types alone: NaN and infinities are null, half surrogate pairs U+FFFD.

    A trainer's settings may hold an infinity (``max_grad_norm``) and a prompt half a character: neither may make the
    output unreadable for a strict parser.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(str(value))
