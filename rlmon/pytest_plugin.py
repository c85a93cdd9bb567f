"""The plugin that pytest finds where rlmon is installed: the fixture ``assert_healthy``. Loads nothing until used."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rlmon.audit.result import Audit


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rlmon-fail-on``, and the same as a setting of the project."""
    said = "From which status on a check fails assert_healthy: fail (default) or warn."
    parser.getgroup("rlmon").addoption("--rlmon-fail-on", choices=("warn", "fail"), default=None, help=said)
    parser.addini("rlmon_fail_on", said, default="fail")


@pytest.fixture(scope="session")
def assert_healthy(pytestconfig: pytest.Config) -> Callable[..., Audit]:
    """``rlmon.testing.assert_healthy`` with the ``fail_on`` of the command line or the project."""
    asked = pytestconfig.getoption("--rlmon-fail-on") or pytestconfig.getini("rlmon_fail_on")

    def healthy(path: str | os.PathLike[str], **settings: Any) -> Audit:
        __tracebackhide__ = True
        import rlmon.testing

        return rlmon.testing.assert_healthy(path, **{"fail_on": asked, **settings})

    return healthy
