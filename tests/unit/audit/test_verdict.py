"""What the checks of a run come to together."""

from __future__ import annotations

from typing import Any

import pytest

from rlmon.audit.result import Check
from rlmon.audit.verdict import reached


def a_check(status: Any, method: Any = "hindsight", check_id: str = "x") -> Check:
    return Check(id=check_id, title="?", status=status, method=method, message="")


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([a_check("pass"), a_check("fail"), a_check("warn")], "fail"),
        ([a_check("pass"), a_check("warn")], "warn"),
        ([a_check("pass"), a_check("skip"), a_check("error")], "pass"),
        ([a_check("skip")], "insufficient"),
        # That all rows were read says nothing of the run; that they were not does.
        ([a_check("pass", "exact"), a_check("skip")], "insufficient"),
        ([a_check("warn", "exact"), a_check("skip")], "warn"),
        # A line that needs no base can be held by a single step; that is no verdict on a run.
        ([a_check("pass", "fold", "silent-groups-bad"), a_check("skip")], "insufficient"),
        ([a_check("pass", "fold", "format-collapse"), a_check("skip")], "pass"),
        ([a_check("warn", "fold", "silent-groups-bad"), a_check("skip")], "warn"),
        ([], "insufficient"),
    ],
)
def test_verdict(checks: list[Check], verdict: str) -> None:
    assert reached(checks) == verdict
