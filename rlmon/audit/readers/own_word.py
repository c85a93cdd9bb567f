"""What rlmon's own sinks left in a tracker's files besides curves: a verdict, and a remark a finding."""

from __future__ import annotations

import html
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
_TAG = re.compile(r"rlmon/(?:verdict|findings/([a-z0-9-]{1,60}))/text_summary")
_TEXT = re.compile(r"\*\*(NOTE|WARN|FAIL)\*\* ")


@dataclass(kw_only=True, slots=True)
class OwnWordInFile:
    """Collects it from what a tracker wrote, in its order."""

    _step: int = 0
    _verdict: Literal["pass", "warn", "fail"] | None = None
    _remarks: list[Remark] = field(default_factory=list)

    def at(self, step: int) -> None:
        """The log has come to ``step``. Where it goes back the run went on from a checkpoint, and what it had said of
        the steps since then no longer counts."""
        if step < self._step:
            self._verdict = None
            self._remarks = [remark for remark in self._remarks if remark.step is None or remark.step < step]
        self._step = step

    def take(self, record: Any, kind: str | None) -> None:
        """Looks at one record of a W&B file; most say nothing of it."""
        if kind == "summary":
            for item in record.summary.update:
                if (item.key or "/".join(item.nested_key)) == "rlmon/verdict":
                    try:
                        self.take_verdict(json.loads(item.value_json))
                    except (ValueError, RecursionError):
                        continue
        elif kind == "alert":
            self.take_remark(remark_of(record.alert.title, record.alert.text))

    def take_text(self, tag: str, step: int, text: bytes) -> None:
        """Looks at one text of TensorBoard, of a tag that ``is_own_text``."""
        words, named = html.unescape(text.decode("utf-8", "replace")), _TAG.fullmatch(tag)
        if named is None or named[1] is None:
            self.take_verdict(words.split(":")[0])
        elif said := _TEXT.match(words):
            severity = cast(Severity, said[1].lower())
            self.take_remark(Remark(detector=named[1], severity=severity, step=step))

    def take_verdict(self, found: Any) -> None:
        """What a key of ours holds; anything but a verdict is passed over."""
        if found in ("pass", "warn", "fail"):
            self._verdict = found

    def take_remark(self, remark: Remark | None) -> None:
        """What ``remark_of`` made of an alert."""
        if remark is not None and len(self._remarks) < MAX_REMARKS:
            self._remarks.append(remark)

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


def is_own_text(tag: str) -> bool:
    """Whether rlmon's sink says its verdict or a finding in TensorBoard's text of this tag."""
    return _TAG.fullmatch(tag) is not None


def own_word(said: Literal["pass", "warn", "fail"] | None, remarks: Sequence[Remark]) -> OwnWord | None:
    """The graver of the verdict and the remarks that a monitor left; ``None`` where it left neither."""
    if said is None and not remarks:
        return None
    of_remarks = verdict(remark.severity for remark in remarks)
    return OwnWord(verdict=max(of_remarks, said or "pass", key=("pass", "warn", "fail").index), remarks=remarks)
