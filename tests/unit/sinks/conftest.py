"""Records to feed a sink with: complete ones, of which a test changes what it is about."""

from __future__ import annotations

from typing import Any

import pytest
from made_header import made_header
from made_records import made_action, made_finding, made_step


@pytest.fixture
def finding() -> Any:
    """``finding(severity="warn")`` is a complete Finding with that field changed."""
    return made_finding


@pytest.fixture
def action() -> Any:
    """``action(phase="failed")`` is a complete Action with that field changed."""
    return made_action


@pytest.fixture
def step() -> Any:
    """``step(3, faults={...})`` is a complete StepRecord of optimizer step 3."""
    return made_step


@pytest.fixture
def header() -> Any:
    """``header(rlmon_table_every=2)`` is a complete RunHeader whose settings have that one changed."""
    return made_header
