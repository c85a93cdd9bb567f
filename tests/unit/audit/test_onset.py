"""Since when something narrowed, where the base that it is compared with is hardly known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from made_records import made_finding

from rlmon.audit.case import Case
from rlmon.audit.checks.onset import Onset, onset
from rlmon.audit.features import Floats
from rlmon.detectors import DETECTORS

(TEMPLATES,) = (spec for spec in DETECTORS if spec.id == "template-collapse")
STEPS = np.arange(1, 37)
DROP = 20
METRIC = "rlmon/collision/template_across"


def began(in_use: Floats, *, base: float, error: float, confirmed: int = 30) -> Onset | None:
    """``in_use``: templates in use at each step; ``base`` +- ``error``: what a detector took for those of the base."""
    values = 1.0 / in_use
    line = SimpleNamespace(steps=STEPS[: values.size])
    case = SimpleNamespace(series=lambda name: values if name == METRIC else None, line=line)
    finding = made_finding(
        detector="template-collapse", metric=f"{METRIC}_effective", step=confirmed, baseline=base,
        # As the detector keeps it: of the chance that two completions have one template.
        evidence={"baseline_se": error / base**2},
    )  # fmt: skip
    return onset(cast(Case, case), TEMPLATES, finding)


def around(level: float, *, then: float = 10.0, seed: int = 0) -> Floats:
    """About so many templates in use from the second step on, and few from ``DROP`` on."""
    levels = np.where(STEPS < DROP, level, then)
    levels[0] = 179.0
    return np.asarray(levels * np.exp(np.random.default_rng(seed).normal(0.0, 0.05, STEPS.size)))


@pytest.mark.parametrize("seed", range(5))
def test_what_lies_within_the_error_of_the_base_is_told_as_by_a_step(seed: int) -> None:
    # 120 is below .8 of 179 from step 2 on, and well within 60 of it.
    found = began(around(120.0, seed=seed), base=179.0, error=60.0)
    assert found is not None
    assert DROP <= found.step <= DROP + 2
    assert found.at_latest


@pytest.mark.parametrize("seed", range(5))
def test_a_base_that_is_known_well_dates_it(seed: int) -> None:
    found = began(around(120.0, seed=seed), base=179.0, error=4.0)
    # Four steps for the mean to follow.
    assert found is not None
    assert 2 <= found.step <= 5
    assert not found.at_latest
    found = began(around(179.0, seed=seed), base=179.0, error=4.0)
    assert found is not None
    assert DROP <= found.step <= DROP + 1
    assert not found.at_latest


def test_what_never_leaves_the_error_of_the_base_began_by_the_time_it_was_confirmed() -> None:
    found = began(around(120.0, then=80.0), base=179.0, error=150.0, confirmed=31)
    assert found == Onset(step=31, at_latest=True)
    # Nor is it told to have begun after that.
    assert began(around(120.0), base=179.0, error=60.0, confirmed=15) == Onset(step=15, at_latest=True)
