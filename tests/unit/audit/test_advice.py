"""What to do about a narrowing in a run whose policy was to hold it already."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from as_asked import answer
from made_records import made_action

from rlmon.audit.case import Case
from rlmon.audit.checks.advice import as_run
from rlmon.audit.incidents import first_choice
from rlmon.detectors.catalog import GAVE_WAY, HOLD, WIDEN


def run(action: str = "mode_marginal", *, live: bool = True, **act: Any) -> Case:
    """A run with one rule, and one act of it."""
    rules: Mapping[str, Any] = {"hold-formats": {"when": "always", "do": {"action": action}}, "bound": "off"}
    acts = [made_action(**{"phase": "applied", "rule": "hold-formats"} | act)]
    fold = SimpleNamespace(live=SimpleNamespace(actions=acts) if live else None)
    return cast(Case, SimpleNamespace(run=SimpleNamespace(config={"policy": {"rules": rules}}), fold=fold))


NARROW = answer(
    id="format-collapse", title="?", status="fail", method="fold", message="", advice=f"{WIDEN} Look at it."
)


@pytest.mark.parametrize("action", ["mode_marginal", "hold"])
def test_a_policy_that_acted_is_not_advised_again(action: str) -> None:
    said = as_run(NARROW, run(action)).advice
    assert HOLD not in said
    assert 'policy="protect"' not in said
    assert first_choice(said) == GAVE_WAY
    # What comes after is said as before.
    assert said == NARROW.advice.replace(HOLD, GAVE_WAY)


@pytest.mark.parametrize(
    "other",
    [
        run("quarantine"), run(phase="decided", dry_run=True), run(phase="applied", dry_run=True),
        run(rule="somebody-elses"), run(live=False),
        cast(Case, SimpleNamespace(run=SimpleNamespace(config={"policy": "protect"}), fold=run().fold)),
        cast(Case, SimpleNamespace(run=SimpleNamespace(config={}), fold=run().fold)),
    ],
)  # fmt: skip
def test_where_none_held_the_outputs_protect_is_advised(other: Case) -> None:
    assert as_run(NARROW, other) is NARROW
