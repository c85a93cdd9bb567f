"""What rlmon's own sink left in a run of W&B or trackio besides curves: the verdict, and an alert a finding."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from rlmon.audit.run import OwnWord, Remark
from rlmon.records import Severity, verdict

MAX_REMARKS = 1_000
_TITLE = re.compile(r"rlmon (NOTE|WARN|FAIL): ([a-z0-9-]{1,60})")
_STEP = re.compile(r"Step (-?\d{1,15}):")


@dataclass(kw_only=True, slots=True)
class OwnWordInFile:
    """Collects it from the records of the file, in their order."""

    _verdict: Literal["pass", "warn", "fail"] | None = None
    _remarks: list[Remark] = field(default_factory=list)

    def take(self, record: Any, kind: str | None) -> None:
        """Looks at one record; most say nothing of it."""
        if kind == "summary":
            for item in record.summary.update:
                if (item.key or "/".join(item.nested_key)) == "rlmon/verdict":
                    self._take_verdict(item.value_json)
        elif kind == "alert" and len(self._remarks) < MAX_REMARKS:
            remark = remark_of(record.alert.title, record.alert.text)
            if remark is not None:
                self._remarks.append(remark)

    def _take_verdict(self, text: str) -> None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return
        if found in ("pass", "warn", "fail"):
            self._verdict = found

    def word(self) -> OwnWord | None:
        """``None`` where no monitor left one: a run that was watched and is not over has alerts, or nothing yet."""
        return own_word(self._verdict, self._remarks)


def remark_of(title: str, text: str) -> Remark | None:
    """What an alert says; ``None`` for one that is not of rlmon."""
    found, at = _TITLE.fullmatch(title), _STEP.match(text)
    if found is None:
        return None
    severity = cast(Severity, found[1].lower())
    return Remark(detector=found[2], severity=severity, step=None if at is None else int(at[1]))


def own_word(said: Literal["pass", "warn", "fail"] | None, remarks: Sequence[Remark]) -> OwnWord | None:
    """The graver of the verdict and the remarks that a monitor left; ``None`` where it left neither."""
    if said is None and not remarks:
        return None
    of_remarks = verdict(remark.severity for remark in remarks)
    return OwnWord(verdict=max(of_remarks, said or "pass", key=("pass", "warn", "fail").index), remarks=remarks)
