"""What a check saw, in words that need no manual: its numbers are those of its base and of the end of the run."""

from __future__ import annotations

import re

from rlmon.audit.result import Check

CLAUSE_CHARACTERS = 300
MOST_DIGITS = 1e9
"""From here on a number is read as a power of ten."""
GONE = 0.005
"""Share below which a format is said to be gone, rather than nearly."""
MANY = 99.5
"""From here on an effective number is mostly the noise of its estimate: hardly any two were alike."""
_ASIDE = re.compile(r" \((change|interval)[^)]*\)")
"""How sure a difference is, which is no part of what happened."""
_COUNTED = ("in use", "effective number", "templates", "answers")
"""Units of numbers of equally common things."""


def clause(check: Check) -> str:
    """What a check saw, as a part of a sentence without its stop."""
    template = check.told
    unknown = check.baseline is None and not (check.unit or "").endswith(_COUNTED) and "{base}" in template
    # What did not change since the base says so in its message.
    still = check.method != "fold" and check.value == check.baseline
    if not template or check.value is None or unknown or still or check.evidence.get("recovered"):
        said = _ASIDE.sub("", check.message.partition(" Confirmed: ")[0])
        return said[:CLAUSE_CHARACTERS].rstrip(".")
    if check.unit == "characters":
        template = template.replace("tokens", "characters")
    return template.format(base=_in_unit(check, check.baseline), now=_in_unit(check, check.value))


def _in_unit(check: Check, value: float | None) -> str:
    unit = check.unit or ""
    if value is None:
        return "many"  # no two were alike
    if unit.startswith(("share", "distinct")):
        return percent(value)
    return effective(value) if unit.endswith(_COUNTED) else short(value)


def effective(value: float) -> str:
    """An effective number as one says it: ``about 4`` for 4.05, ``about 2.5`` for 2.48, ``over 100`` for 896."""
    if value >= MANY:
        return "over 100"
    whole = value >= 9.5 or abs(value - round(value)) <= 0.15
    return f"about {value:.0f}" if whole else f"about {value:.1f}"


def percent(share: float) -> str:
    """``37 %``, ``3 %``, ``0.4 %``: a share without more digits than it is known to."""
    value = 100.0 * share
    return f"{value:.0f} %" if value >= 0.95 or value == 0.0 else f"{value:.1g} %"


def short(value: float) -> str:
    """Three significant digits, thousands set apart; powers of ten where there would be a row of them."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < MOST_DIGITS else f"{value:.3g}"
