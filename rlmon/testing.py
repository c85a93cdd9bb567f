"""What a test of a training recipe asks: is the run that it left behind healthy?

::

    from rlmon.testing import assert_healthy

    def test_recipe(tmp_path):
        train(output_dir=tmp_path)
        assert_healthy(tmp_path)

Under pytest there is a fixture of the same name, which needs no import. Importing this loads nothing heavy.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from rlmon.errors import ConfigError

if TYPE_CHECKING:
    from rlmon.audit.result import Audit, Check


class NotEnoughData(AssertionError):
    """Nothing bad was seen in the run, and too little to call it healthy."""


def assert_healthy(
    path: str | os.PathLike[str],
    *,
    fail_on: Literal["warn", "fail"] = "fail",
    checks: Collection[str] = (),
    allow: Collection[str] = (),
    **how: Any,
) -> Audit:
    """The audit of the run in ``path``, where it is healthy; else an ``AssertionError`` that says what to change.

    Args:
        fail_on: from which status on a check fails the test. A check that could not be carried out always does.
        checks: ids of the checks that count, each of which needs an answer. By default all count, and every core
            question needs one.
        allow: ids of checks that may say what they like.
        how: settings of ``rlmon.audit``, for example ``baseline="runs/base"`` or ``success="accuracy_reward"``.

    Raises ``NotEnoughData`` (an ``AssertionError`` too) where nothing bad was seen and a question is open,
    ``ConfigError`` where a name or a word is unknown, ``ReadError`` where ``path`` holds no run.
    """
    __tracebackhide__ = True
    if fail_on not in ("warn", "fail"):
        raise ConfigError(f"fail_on is 'warn' or 'fail', got {fail_on!r}.")
    for name, given in (("checks", checks), ("allow", allow)):
        if isinstance(given, str):
            raise ConfigError(f"{name} is a list of ids of checks, got the text {given!r}. Type: {name}=[{given!r}]")
    import rlmon.audit.engine as engine

    audit = engine.audit(path, **how)
    known = [check.id for check in audit.checks]
    if strangers := [name for name in (*checks, *allow) if name not in known]:
        raise ConfigError(
            f"No check is called {', '.join(map(repr, strangers))}. There are {', '.join(sorted(known))}."
        )
    counted = [check for check in audit.checks if check.id not in allow and (not checks or check.id in checks)]
    bad_words = ("fail", "error") if fail_on == "fail" else ("fail", "error", "warn")
    if bad := [check for word in bad_words for check in counted if check.status == word]:
        raise AssertionError(_told(audit, bad))
    if open_questions := _open(audit, counted, checks):
        raise NotEnoughData(_too_little(audit, open_questions))
    return audit


def _open(audit: Audit, counted: Collection[Check], named: Collection[str]) -> list[str]:
    """What has no answer, a line each: of the checks that were named, else of the core questions."""
    import rlmon.report.phrases as phrases
    from rlmon.audit.verdict import QUESTIONS
    from rlmon.printable import one_line

    if named:
        return [f"{check.id}: {phrases.said(check)}" for check in counted if check.status in ("skip", "unsure")]
    allowed = {check.core for check in audit.checks} - {check.core for check in counted}
    return [
        one_line(f"no answer about {QUESTIONS[core]}: {reason}")
        for core, reason in audit.coverage.missing.items()
        if core not in allowed
    ]


def _told(audit: Audit, bad: Collection[Check]) -> str:
    """The verdict, what each check found and what to change, and the command that shows more."""
    import rlmon.report.phrases as phrases
    from rlmon.printable import one_line

    lines = [f"{_run(audit)} is not healthy: {phrases.verdict(audit)}. {one_line(audit.headline)}"]
    for check in bad:
        since = f" ({where})" if (where := phrases.where(check)) else ""
        lines.append(f"  {check.status.upper()} {check.id}: {phrases.said(check).rstrip('.')}{since}.")
        if check.advice:
            lines.append(f"    Change: {one_line(check.advice)}")
    ids = ", ".join(repr(check.id) for check in bad)
    lines += [f"  To see more: {_command(audit)}", f"  To accept it: assert_healthy(..., allow=[{ids}])"]
    return "\n".join(lines)


def _too_little(audit: Audit, open_questions: Collection[str]) -> str:
    lines = [f"{_run(audit)}: nothing bad was seen, but too little to call it healthy ({audit.coverage})."]
    lines += [f"  {question.rstrip('.')}." for question in open_questions]
    lines += [
        "  Train for longer, log what is missing, or name the checks that matter: assert_healthy(..., checks=[...])",
        f"  To see more: {_command(audit)}",
    ]
    return "\n".join(lines)


def _run(audit: Audit) -> str:
    from rlmon.printable import one_line

    return one_line(audit.run.source, 200)


def _command(audit: Audit) -> str:
    return f"rlmon audit {shlex.quote(_run(audit))} --html report.html"
