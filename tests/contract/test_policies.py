"""Every policy that ships parses against the detectors and metrics of this version, and its page is up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlmon.detectors import DETECTORS
from rlmon.errors import ConfigError
from rlmon.interventions import conditions, policy_file
from rlmon.interventions.actions import ACTIONS
from rlmon.interventions.policy import Policy, parse
from rlmon.metrics.catalog import METRICS

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted(policy_file.PRESETS.glob("*.yaml"))
POLICIES = [*PRESETS, ROOT / "configs" / "policy.yaml", *sorted((ROOT / "configs" / "policies").glob("*.yaml"))]
PAGE = ROOT / "docs" / "interventions.md"


def read(source: str | Path) -> Policy:
    return parse(
        source,
        known_findings=[spec.id for spec in DETECTORS],
        known_metrics=[metric.name for metric in METRICS],
    )


def test_there_is_something_to_test() -> None:
    assert [path.stem for path in PRESETS] == ["observe", "protect", "strict"] == list(policy_file.preset_names())


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_policy_parses_and_survives_the_run_header(path: Path) -> None:
    policy = read(path)
    assert policy.rules
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False))) == policy


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_every_field_of_a_shipped_policy_is_checked(path: Path, tmp_path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r"^[ -]*[a-z_]+:", line)]
    assert keys
    for i in keys:
        broken = tmp_path / "broken.yaml"
        broken.write_text("\n".join([*lines[:i], re.sub(r"([a-z_]+):", r"\1zz:", lines[i], count=1), *lines[i + 1 :]]))
        with pytest.raises(ConfigError, match=r"broken\.yaml:\d+: "):
            read(broken)


def test_the_example_shows_every_field_of_a_rule_and_of_a_metric_condition() -> None:
    text = (ROOT / "configs" / "policy.yaml").read_text(encoding="utf-8")
    for word in ("extends", "dry_run", "cool_off_steps", "hysteresis", "measure_after_steps", "lasts_steps",
                 "smooth_steps", "of: base", "above", "below", "any", "all", ": off"):  # fmt: skip
        assert word in text


@pytest.mark.parametrize("name", policy_file.preset_names())
def test_a_preset_says_why_each_of_its_rules_is_there(name: str) -> None:
    lines = (policy_file.PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    rules = [i for i, line in enumerate(lines) if re.match(r"^  [a-z0-9-]+:", line)]
    assert [lines[i] for i in rules if not lines[i - 1].startswith("  #")] == []


def test_presets_measure_what_they_do_by_metrics_of_the_catalogue() -> None:
    known = {metric.name for metric in METRICS}
    watched = [conditions.metric_of(rule.when) for rule in read("strict").rules]
    assert [found[0] for found in watched if found is not None and found[0] not in known] == []


def test_the_page_names_every_action_and_preset() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in (*ACTIONS, *policy_file.preset_names()) if f"`{name}`" not in page] == []


def test_every_policy_on_the_page_parses() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    policies = [block for block in blocks if re.search(r"^(rules|extends):", block, flags=re.MULTILINE)]
    assert len(policies) >= 3
    done = {rule.action.name for block in policies for rule in read(block).rules}
    assert done
