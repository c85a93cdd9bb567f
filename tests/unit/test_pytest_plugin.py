"""``assert_healthy``, as a function and as the fixture that pytest finds by its entry point."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_audit
import pytest

from rlmon.audit import engine
from rlmon.errors import ConfigError
from rlmon.testing import NotEnoughData, assert_healthy

ROOT = Path(__file__).resolve().parents[2]


def gives(monkeypatch: pytest.MonkeyPatch, audit: Any) -> None:
    monkeypatch.setattr(engine, "audit", lambda path, **how: audit)


def test_a_healthy_run_gives_its_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = make_audit.healthy()
    gives(monkeypatch, audit)
    assert assert_healthy("run") is audit


def test_a_collapsed_run_says_what_to_change_and_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = make_audit.collapsed()
    gives(monkeypatch, audit)
    with pytest.raises(AssertionError) as raised:
        assert_healthy("run")
    text = str(raised.value)
    assert " is not healthy: FAIL. " in text
    bad = [check for check in audit.checks if check.status in ("fail", "error")]
    assert bad
    for check in bad:
        assert f"{check.status.upper()} {check.id}: " in text
        assert not check.advice or f"Change: {check.advice[:40]}" in text
    assert "To see more: rlmon audit " in text
    assert not isinstance(raised.value, NotEnoughData)
    assert assert_healthy("run", allow=[check.id for check in bad]) is audit


def test_warnings_fail_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = make_audit.healthy()
    first = dataclasses.replace(audit.checks[0], status="warn", message="a little less")
    gives(monkeypatch, dataclasses.replace(audit, checks=[first, *audit.checks[1:]], verdict="warn"))
    assert_healthy("run")
    with pytest.raises(AssertionError, match=f"WARN {first.id}: a little less"):
        assert_healthy("run", fail_on="warn")
    assert_healthy("run", fail_on="warn", allow=[first.id])
    assert_healthy("run", fail_on="warn", checks=[audit.checks[1].id])


def test_too_little_is_neither_healthy_nor_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = make_audit.one_step()
    gives(monkeypatch, audit)
    with pytest.raises(NotEnoughData, match=r"nothing bad was seen, but too little(.|\n)*no answer about entropy"):
        assert_healthy("run")
    skipped = next(check.id for check in audit.checks if check.status == "skip")
    with pytest.raises(NotEnoughData, match=f"{skipped}: "):
        assert_healthy("run", checks=[skipped])


def test_hostile_text_of_a_run_is_one_printable_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    gives(monkeypatch, make_audit.hostile())
    with pytest.raises(AssertionError) as raised:
        assert_healthy("run", fail_on="warn")
    assert all(line.isprintable() for line in str(raised.value).split("\n"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fail_on": "never"}, "fail_on is 'warn' or 'fail', got 'never'"),
        ({"allow": "kl-drift"}, r"Type: allow=\['kl-drift'\]"),
        ({"checks": ["nonsense"]}, "No check is called 'nonsense'. There are "),
    ],
)
def test_what_is_misspelt_is_refused(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str) -> None:
    gives(monkeypatch, make_audit.healthy())
    with pytest.raises(ConfigError, match=said):
        assert_healthy("run", **settings)


def session(folder: Path, test: str, *options: str, settings: str = "") -> subprocess.CompletedProcess[str]:
    """A session of pytest in which rlmon is installed with the entry points of pyproject.toml, in a fresh process."""
    (table,) = re.findall(
        r"\[project\.entry-points\.pytest11\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.S
    )
    about = folder / "site" / "rlmon-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rlmon\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text("[pytest11]\n" + table.replace('"', "") + "\n")
    (folder / "pytest.ini").write_text(f"[pytest]\n{settings}\n")
    (folder / "test_recipe.py").write_text(test)
    environment = {**os.environ, "PYTHONPATH": f"{about.parent}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


RECIPE = f"""
def test_recipe(assert_healthy):
    assert_healthy({str(ROOT / "tests" / "golden" / "runlog-schema-2")!r})
"""


def test_the_fixture_is_there_without_an_import_and_fails_readably(tmp_path: Path) -> None:
    left = session(tmp_path, RECIPE)
    assert left.returncode == 1
    assert "1 failed" in left.stdout
    assert "To see more: rlmon audit " in left.stdout
    assert "rlmon/testing.py" not in left.stdout  # the test's own line, and not our insides


def test_how_strict_it_is_can_be_a_setting_or_an_option(tmp_path: Path) -> None:
    probe = "import rlmon.testing\ndef test(assert_healthy, monkeypatch):\n    seen = []\n"
    probe += "    monkeypatch.setattr(rlmon.testing, 'assert_healthy', lambda path, fail_on: seen.append(fail_on))\n"
    probe += "    assert_healthy('x')\n    assert seen == ['warn']\n"
    assert session(tmp_path / "a", probe, "--rlmon-fail-on", "warn").returncode == 0
    assert session(tmp_path / "b", probe, settings="rlmon_fail_on = warn").returncode == 0
    assert session(tmp_path / "c", probe).returncode == 1


def test_until_it_is_used_it_loads_nothing(tmp_path: Path) -> None:
    probe = "import sys\ndef test():\n    assert 'rlmon.pytest_plugin' in sys.modules\n"
    probe += "    assert not {'rlmon.testing', 'rlmon.audit', 'pyarrow', 'rich'} & set(sys.modules)\n"
    left = session(tmp_path, probe, "-p", "no:jaxtyping", "-p", "no:hypothesispytest")
    assert left.returncode == 0, left.stdout
