"""The JSON Schema that ships with the package describes what ``rlmon audit --format json`` prints, key by key."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Set
from importlib.resources import files
from pathlib import Path
from typing import Any

import make_audit
import pytest
from jsonschema import Draft202012Validator

from rlmon.audit import engine, result
from rlmon.audit.result import Audit
from rlmon.records import Action, Finding
from rlmon.report import as_json

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SCHEMA: dict[str, Any] = json.loads(files("rlmon.audit").joinpath("schema.json").read_text(encoding="utf-8"))
AUDITS = [
    make_audit.healthy,
    make_audit.solved,
    make_audit.collapsed,
    make_audit.empty,
    make_audit.one_step,
    make_audit.hostile,
]


def problems(value: Any) -> list[str]:
    return [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}"
        for e in Draft202012Validator(SCHEMA).iter_errors(value)
    ]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("make", AUDITS)
def test_what_is_printed_is_valid(make: Callable[[], Audit]) -> None:
    printed = json.loads(as_json.render(make()), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert problems(printed) == []


@pytest.mark.parametrize("run", ["foreign/trl", "foreign/wandb-trl", "foreign/tensorboard", "runlog-schema-1"])
def test_what_the_engine_makes_of_real_runs_is_valid(run: str) -> None:
    printed = json.loads(as_json.render(engine.audit(GOLDEN / run)))
    assert problems(printed) == []


def broken(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    value: dict[str, Any] = copy.deepcopy(json.loads(as_json.render(make_audit.collapsed())))
    change(value)
    return value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("verdict"), "'verdict' is a required property"),
        (lambda v: v.update(verdict="ok"), "verdict: 'ok' is not one of"),
        (lambda v: v.update(schema_version=2), "schema_version: 3 was expected"),
        (lambda v: v["checks"][0].update(id="Format Collapse"), "checks/0/id"),
        (lambda v: v["checks"][0].update(status="skip", reason=None), "checks/0/reason: None is not of type 'string'"),
        (lambda v: v["checks"][0].update(status="unsure", reason=None), "checks/0/reason: None is not of"),
        (lambda v: v["checks"][0].update(core="colour"), "checks/0/core"),
        (lambda v: v["coverage"]["missing"].update(colour="not seen"), "coverage/missing"),
        (lambda v: v["checks"][0].update(value="high"), "checks/0/value"),
        (lambda v: v["checks"][0].update(interval=[1.0]), "checks/0/interval"),
        (lambda v: v["run"].update(completions=-1), "run/completions"),
        (lambda v: v["modes"][0].update(base_share=1.5), "modes/0/base_share"),
        (lambda v: v["findings"][0].pop("baseline_kind"), "'baseline_kind' is a required property"),
    ],
)
def test_the_schema_can_refuse(change: Callable[[dict[str, Any]], None], said: str) -> None:
    assert any(said in problem for problem in problems(broken(change)))


@pytest.mark.parametrize(
    ("name", "record", "left_out"),
    [
        ("coverage", result.Coverage, set()),
        ("run", result.RunFacts, set()),
        ("check", result.Check, result.FOR_THE_STORY),
        ("example", result.Example, set()),
        ("metric", result.MetricSummary, set()),
        ("mode", result.ModeStory, {"examples"}),
        ("finding", Finding, set()),
        ("action", Action, set()),
    ],
)
def test_every_field_of_a_record_is_described_and_nothing_else(name: str, record: Any, left_out: Set[str]) -> None:
    described = SCHEMA["$defs"][name]
    assert set(described["properties"]) == {f.name for f in dataclasses.fields(record)} - left_out
    assert set(described["required"]) == set(described["properties"])


def test_every_key_of_the_object_is_described_and_nothing_else() -> None:
    assert set(SCHEMA["properties"]) == set(make_audit.healthy().to_json()) == set(SCHEMA["required"])
