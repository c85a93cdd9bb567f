"""What somebody sees who works with rlmon at a Python prompt or in a notebook."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from pathlib import Path

import make_audit
import pytest

import rlmon
from rlmon.audit.result import Audit
from rlmon.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def found() -> Audit:
    audit = rlmon.audit(GOLDEN / "runlog-schema-2")
    assert isinstance(audit, Audit)
    return audit


def test_the_package_audits(found: Audit) -> None:
    from rlmon.audit import audit

    assert found.run.reader == "rlmon"
    assert audit(GOLDEN / "runlog-schema-2").headline == found.headline
    assert "audit" in dir(rlmon)


def test_a_notebook_says_by_when_it_began_where_that_is_all_that_is_known() -> None:
    audit = make_audit.healthy()
    late = dataclasses.replace(audit.checks[0], status="fail", first_step=40, at_latest=True)
    early = dataclasses.replace(late, first_step=0, at_latest=False)
    page = dataclasses.replace(audit, checks=[late, early])._repr_html_()
    assert "<th>began</th>" in page
    assert "<td>by 40</td>" in page
    assert "<td>0</td>" in page


def test_an_audit_is_a_line_and_its_checks_too(found: Audit) -> None:
    assert repr(found).startswith(f"<Audit of {str(GOLDEN / 'runlog-schema-2')!r}: ")
    assert repr(make_audit.one_step()).startswith("<Audit of 'out/grpo-arith': UNSURE. One step is too little")
    for shown in (*found.checks, *make_audit.hostile().checks, make_audit.hostile()):
        assert len(repr(shown)) < 600
        assert "\n" not in repr(shown)
        assert repr(shown).isprintable()
    assert repr(make_audit.solved().checks[0]).startswith("<Check silent-groups-good: NOTE since step 71, in 91%")


def test_a_notebook_shows_what_spoke_and_nothing_of_the_run_as_markup() -> None:
    page = make_audit.hostile()._repr_html_()
    assert page.count("<tr>") == 1 + sum(check.status not in ("pass", "skip") for check in make_audit.hostile().checks)
    assert "<script" not in page
    assert "<img" not in page
    assert make_audit.healthy()._repr_html_().startswith("<div><b>PASS</b>: No damage found")
    assert "<table" not in make_audit.healthy()._repr_html_()


def test_curves_are_a_table(found: Audit) -> None:
    table = found.table()
    assert table["step"].to_pylist() == list(found.steps)
    assert set(table.column_names) == {"step", *found.series}
    name = "rlmon/entropy/mean"
    run = rlmon.open_run(GOLDEN / "runlog-schema-2")
    assert run.metrics(name).column_names == ["step", name]
    assert run.metrics(name)[name].to_pylist() == [record.metrics.get(name) for record in run.iter_steps()]
    assert set(run.metrics().column_names) == {"step"} | {n for record in run.iter_steps() for n in record.metrics}
    with pytest.raises(KeyError, match="Did you mean rlmon/entropy/mean"):
        run.metrics("rlmon/entropy/meen")
    assert repr(run).startswith("<Run '")


@pytest.mark.parametrize(
    ("name", "meant"), [("policy", "rlmon_policy"), ("rlmon_polcy", "rlmon_policy"), ("store_txt", "rlmon_store_text")]
)
def test_a_wrong_keyword_names_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"Unknown rlmon setting '{name}'. Did you mean {meant}\?"):
        rlmon.RLMonConfig(**{name: "protect"})


def test_a_config_is_still_a_dataclass() -> None:
    config = rlmon.RLMonConfig(rlmon_dir="x")
    assert list(inspect.signature(rlmon.RLMonConfig).parameters) == [f.name for f in dataclasses.fields(config)]
    assert pickle.loads(pickle.dumps(config)) == config == rlmon.RLMonConfig("x")
    assert dataclasses.replace(config, rlmon_dir="y").rlmon_dir == "y"
