"""A policy that cannot do what it asks for is refused before the first step, with all that is wrong; the command that
checks a file says the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import steered
import tiny
import yaml

import rlmon
from rlmon.errors import AttachError
from rlmon.trl import RLMon, RLMonConfig
from rlmon.trl.check import check_config

pytestmark = pytest.mark.trl

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "kl": ({"when": steered.above("rlmon/kl/mean", 0.3), "do": "stop"}, "rlmon_base_kl is off"),
    "critic": ({"when": steered.above("rlmon/value/loss", 1.0), "do": "anchor"}, "no critic"),
    "haiku": (
        {"when": steered.above("rlmon/format/share/jsn", 0.3), "do": {"action": "defer", "after_attempts": 4}},
        "no format mode 'jsn'. Did you mean json?",
    ),
    "rung": (
        {"when": {"finding": "silent-groups-good", "severity": "fail"}, "do": "quarantine"},
        "silent-groups-good never says fail",
    ),
    "zero": ({"when": "always", "do": {"action": "winsorise", "limit": 0}}, "limit: 0 makes every advantage 0"),
    "itself": (
        {"when": steered.above("rlmon/intervention/entropy_coef", 0.01), "do": "entropy_bonus"},
        "it waits for it",
    ),
    "back": ({"when": {"finding": "format-collapse"}, "do": "roll_back"}, "save_strategy is no"),
}


def refused(made: Any, policy: Any, **settings: Any) -> str:
    with pytest.raises(AttachError) as caught:
        RLMon(made, RLMonConfig(rlmon_policy=policy, **settings))
    return str(caught.value)


def test_all_that_is_wrong_is_refused_at_once_as_the_check_says(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path / "run", max_steps=100)
    policy = {"rules": {name: rule for name, (rule, _) in WRONG.items()}}
    told = refused(made, policy, rlmon_base_kl="off")
    assert "in 7 places" in told
    lines = re.findall(r"^  \d+\. (.*)$", told, flags=re.MULTILINE)
    assert len(lines) == len(WRONG)
    for line, (name, (_, words)) in zip(lines, WRONG.items(), strict=True):
        assert line.startswith(f"rule {name}: ")
        assert words in line
    # Each on its own is refused as well.
    for name, (rule, words) in WRONG.items():
        assert words in refused(made, {"rules": {name: rule}}, rlmon_base_kl="off")
    file = tmp_path / "config.yaml"
    names = ("use_cpu", "bf16", "num_generations", "per_device_train_batch_size", "max_steps", "report_to")
    settings = {name: getattr(made.args, name) for name in names} | {"save_strategy": "no"}
    asked = {"rlmon_base_kl": "off", "rlmon_policy": json.loads(json.dumps(policy))}
    file.write_text(yaml.safe_dump({**settings, **asked, "model_name_or_path": "base"}))
    # YAML sorts the rules by name.
    assert check_config(file, "grpo").refused == sorted(lines)


def test_a_refused_trainer_is_left_as_it_was(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path / "run", max_steps=2)
    before = set(vars(made))
    refused(made, {"rules": {"zero": WRONG["zero"][0]}})
    assert set(vars(made)) == before
    RLMon(made, steered.config(None))
    made.train()
    assert made.state.global_step == 2


def rows(out: Path) -> dict[str, tuple[str, str]]:
    table = rlmon.open_run(out / "rlmon").header.capabilities
    return {row["signal"]: (row["status"], row["reason"]) for row in table}


def test_what_is_odd_is_said_at_attach_and_kept_with_the_capabilities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = {"rules": {"end": {"when": {"metric": "rlmon/format/top_share", "below": 85}, "do": "stop"}}}
    made = tiny.trainer(tmp_path / "run", max_steps=3)
    RLMon(made, RLMonConfig(rlmon_policy=policy))
    text = "rlmon/format/top_share is 1 at most: below 85 holds always. Did you mean below: 0.85?"
    assert f"rule end: {text}" in capsys.readouterr().err
    made.train()
    assert rows(tmp_path / "run")["rule end"] == ("yes", text)


def test_a_preset_in_a_short_run_is_not_refused(tmp_path: Path) -> None:
    """Three steps end within the baseline, so that strict's alarms cannot come: said, not refused."""
    steered.trained(tmp_path / "run", "strict", max_steps=3)
    status, reason = rows(tmp_path / "run")["rule anchor-dying-formats"]
    assert status == "skip"
    assert "format-collapse compares with the baseline, and max_steps: 3 ends within that" in reason
