"""The command line: what each command prints where, and with which exit code it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from called import Left, Rlmon
from webhook_server import serving

from rlmon import __version__
from rlmon.detectors import DETECTORS
from rlmon.interventions import policy_file
from rlmon.interventions.actions import ACTIONS
from rlmon.metrics.catalog import METRICS
from rlmon.records import RunHeader
from rlmon.runlog import RunLogWriter

HOSTILE = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\n== step 9 forged\r\u202e[red]"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two steps of four completions; step 2 holds hostile text, a missing reward and a completion without its text."""
    path = tmp_path / "run"
    header = RunHeader(
        run_id="r", attempt=0, attempt_kind="fresh", created_unix_seconds=0.0, trainer="manual", group_size=2,
        world_size=1, total_steps=2, config={}, trainer_config={}, detectors={}, packages={}, git_commit=None,
        capabilities=(),
    )  # fmt: skip
    writer = RunLogWriter.open(path, header, rank=0, world_size=1, store_text="full", resume=False)
    for step in (1, 2):
        texts = ["plain", "{}", "plain", "1"] if step == 1 else [HOSTILE, "{}", None, "1"]
        columns: dict[str, list[Any]] = {
            "attempt": [0] * 4, "round": [step - 1] * 4, "split": ["train"] * 4, "global_row": [0, 1, 2, 3],
            "group": [0, 0, 1, 1], "step": [step] * 4, "prompt_id": ["aa1", "aa1", "bb2", "bb2"],
            "source": ["sums"] * 4, "prompt": ["1 + 1"] * 4,
            "completion": texts, "prompt_tokens": [3] * 4, "completion_tokens": [5] * 4,
            "truncated": [False, False, True, None], "reward": [1.0, 0.5, None, 0.0], "rewards": [{}] * 4,
            "advantage": [0.7071, -0.7071, None, 0.0], "mode": ["prose", "json", "prose", "bare answer"],
            "reasoning_mode": [None] * 4, "template_key": [1, 2, 1, 3], "answer_key": [None] * 4,
            "opening_key": [1] * 4, "openers": [None] * 4, "opener_weights": [None] * 4,
        }  # fmt: skip
        optional = dict.fromkeys(("segment", "turn", "policy_version", "staleness"), [None] * 4)
        writer.write_rollouts({**columns, **optional})
    writer.close()
    return path


def test_version(rlmon: Rlmon) -> None:
    assert rlmon("--version") == (0, f"rlmon {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["nope"], ["show"], ["metrics", "--format", "xml"], ["show", "x", "--step", "b"]]
)
def test_wrong_usage_is_exit_2_on_stderr(rlmon: Rlmon, arguments: list[str]) -> None:
    left = rlmon(*arguments)
    assert left.code == 2
    assert left.out == ""
    assert "Usage: rlmon" in left.err


def test_metrics_in_three_forms(rlmon: Rlmon) -> None:
    text = rlmon("metrics")
    assert text.code == 0
    assert [line for line in text.out.splitlines() if line and line[0] != " "] == [metric.name for metric in METRICS]
    rows = json.loads(rlmon("metrics", "--format", "json").out)
    assert [row["name"] for row in rows] == [metric.name for metric in METRICS]
    docs = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert rlmon("metrics", "--format", "markdown").out == docs.read_text(encoding="utf-8")


def test_one_family_of_metrics(rlmon: Rlmon) -> None:
    rows = json.loads(rlmon("metrics", "kl", "--format", "json").out)
    assert rows
    assert all(row["name"].startswith("rlmon/kl/") for row in rows)
    left = rlmon("metrics", "kll")
    assert (left.code, left.out) == (2, "")
    assert left.err.startswith("rlmon: There is no metric family 'kll'; there are entropy, ")


@pytest.mark.parametrize("name", ["rlmon/group/silent", "group/silent", "frac_reward_zero_std"])
def test_one_metric_by_any_of_its_names_is_explained(rlmon: Rlmon, name: str) -> None:
    left = rlmon("metrics", name)
    assert left.out.startswith("rlmon/group/silent\n    what it is: groups without reward spread")
    assert "frac_reward_zero_std (trl)" in left.out
    assert [row["name"] for row in json.loads(rlmon("metrics", name, "--format", "json").out)] == ["rlmon/group/silent"]
    assert "watched by: silent-groups-bad" in rlmon("metrics", "rlmon/group/all_bad").out
    assert "Did you mean entropy/mean?" in rlmon("metrics", "entropy/meen").err


@pytest.mark.parametrize("detector", [detector.id for detector in DETECTORS])
def test_one_detector_is_explained(rlmon: Rlmon, detector: str) -> None:
    text = rlmon("detectors", detector).out
    assert text.startswith(f"{detector}\n    asks: ")
    for what in ("means", "reads", "line", "speaks when", "then", "false fail", "its metric"):
        assert f"\n    {what}: " in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(json.loads(rlmon("detectors", detector, "--format", "json").out)) == 1


def test_a_detector_that_is_not_there(rlmon: Rlmon) -> None:
    left = rlmon("detectors", "format-colapse")
    assert (left.code, left.out) == (2, "")
    assert left.err.endswith("Did you mean format-collapse?\n")


def test_detectors_print_line_method_and_price(rlmon: Rlmon) -> None:
    text = rlmon("detectors").out
    for detector in DETECTORS:
        assert f"\n{detector.id}\n" in f"\n{text}"
        assert f"    line: {detector.line}\n" in text
    assert text.count("    method: ") == text.count("    false fail: ") == len(DETECTORS)
    rows = json.loads(rlmon("detectors", "--format", "json").out)
    assert [row["id"] for row in rows] == [detector.id for detector in DETECTORS]


def test_show_takes_the_newest_step_and_counts_modes_on_stderr(rlmon: Rlmon, log: Path) -> None:
    left = rlmon("show", log)
    assert left.code == 0
    heads = [line for line in left.out.splitlines() if line.startswith("== ")]
    assert len(heads) == 4
    assert all(head.startswith("== step 2 round 1 train row ") for head in heads)
    assert heads[0].endswith("prompt aa1 source sums mode prose template 00000001 reward 1 advantage 0.707 tokens 5")
    last = "prompt bb2 source sums mode prose template 00000001 reward - advantage - tokens 5 truncated"
    assert heads[2].endswith(last)
    assert "completion: not stored (rlmon_store_text or rlmon_text_sample_per_round)" in left.out
    assert left.err == "4 of 4 completions; modes: prose 0.50, json 0.25, bare answer 0.25\n"


def test_show_never_obeys_what_it_shows(rlmon: Rlmon, log: Path) -> None:
    out = rlmon("show", log).out
    assert not [c for c in out if c != "\n" and not c.isprintable()]
    assert "  | \\x1b[2J\\x1b]0;owned\\x07<script>alert(1)</script>\n  | == step 9 forged\\r\\u202e[red]\n" in out


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        (["--step", 1], ["step 1 row 0", "step 1 row 1", "step 1 row 2", "step 1 row 3"]),
        (["--mode", "json"], ["step 1 row 1", "step 2 row 1"]),
        (["--prompt", "bb"], ["step 1 row 2", "step 1 row 3", "step 2 row 2", "step 2 row 3"]),
        (["--prompt", "bb", "--step", 2, "--mode", "prose"], ["step 2 row 2"]),
        (["--mode", "prose", "--limit", 1], ["step 1 row 0"]),
    ],
)
def test_show_filters(rlmon: Rlmon, log: Path, filters: list[object], rows: list[str]) -> None:
    out = rlmon("show", log, *filters).out
    words = [line.split() for line in out.splitlines() if line.startswith("== ")]
    assert [f"step {word[2]} row {word[7]}" for word in words] == rows


def test_show_says_what_there_is_when_nothing_fits(rlmon: Rlmon, log: Path) -> None:
    left = rlmon("show", log, "--step", 1, "--mode", "xml")
    assert (left.code, left.out) == (2, "")
    assert "Modes there: prose 2, json 1, bare answer 1." in left.err


def test_show_refuses_what_is_no_run(rlmon: Rlmon, tmp_path: Path) -> None:
    left = rlmon("show", tmp_path / "nowhere")
    assert (left.code, left.out) == (2, "")
    assert left.err.startswith("rlmon: ")
    assert "nowhere" in left.err


def test_demo_refuses_unknown_arms_and_seeds(rlmon: Rlmon, tmp_path: Path) -> None:
    left = rlmon("demo", "--out", tmp_path / "out", "--arms", "unprotected,nope")
    assert left.code == 2
    assert "nope" in left.err
    left = rlmon("demo", "--out", tmp_path / "out", "--seeds", "0,b")
    assert left.code == 2
    assert "--seeds must be whole numbers" in left.err
    assert not (tmp_path / "out").exists()


def test_commands_that_train_say_what_to_install(rlmon: Rlmon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for arguments in (["check", "x.yaml"], ["demo"]):
        left = rlmon(*arguments)
        assert (left.code, left.out) == (2, "")
        assert left.err == (
            f"rlmon: `rlmon {arguments[0]}` needs torch, which is not installed. Type: pip install 'rlmon[trl]'\n"
        )


GOOD = """
model_name_or_path: base
use_cpu: true
bf16: false
per_device_train_batch_size: 16
num_generations: 4
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


UNWATCHED = "model_name_or_path: base\nuse_cpu: true\nbf16: false\nreward_funcs: [accuracy_reward]\n"


@pytest.mark.trl
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (UNWATCHED, "Add the probe: `reward_funcs: [accuracy_reward, rlmon.trl.probe]`. Or train"),
        (UNWATCHED + "reward_weights: [1.0]\n", "rlmon.trl.probe]` and one more weight, 0.0, to reward_weights."),
        (GOOD + "env: {RLMON_DIR: runs/x}\n", "Nobody reads RLMON_DIR without the probe. Add the probe"),
        (GOOD + "reward_model_name_or_path: some/model\n", "Nothing would be captured by `trl grpo`"),
        (GOOD + "dataset_name: some/data\n", "Nothing would be captured by `trl grpo`"),
        (GOOD + "reward_funcs: [rlmon.trl.prob]\n", "Did you mean rlmon.trl.probe by rlmon.trl.prob?"),
        (
            GOOD + "env: {RLMON_POLICI: protect}\n",
            "Unknown environment variable RLMON_POLICI. Did you mean RLMON_POLICY?",
        ),
        (GOOD + "env: {rlmon_dir: runs/x}\n", "Nothing reads 'rlmon_dir' under `env:`"),
        (GOOD + "RLMON_DIR: runs/x\n", "Nothing reads 'RLMON_DIR' here"),
        (GOOD + "rlmon-dir: runs/x\n", "Nothing reads 'rlmon-dir' here"),
        ("extends: protect\n", "is a policy, not the file of a trainer. `rlmon policy "),
        ("rules: {a: {when: always, do: stop}}\n", "into the trainer's file and check that one"),
    ],
)
def test_check_of_what_would_capture_nothing(rlmon: Rlmon, config: Callable[[str], Path], text: str, said: str) -> None:
    left = rlmon("check", config(text))
    assert (left.code, left.out) == (2, "")
    assert said in left.err


@pytest.mark.trl
def test_check_says_who_attaches_and_looks_at_the_environment(
    rlmon: Rlmon, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = rlmon("check", config(GOOD + "lerning_rate: 0.1\n"))
    assert "For `trl grpo` add rlmon.trl.probe to reward_funcs" in left.err
    assert "Did you mean learning_rate by lerning_rate?" in left.err
    assert left.code == 0
    assert "attaches" not in rlmon("check", config(GOOD + "rlmon_dir: x\n")).err
    monkeypatch.setenv("RLMON_BASE_KLL", "off")
    left = rlmon("check", config(GOOD))
    assert (left.code, left.out) == (2, "")
    assert "RLMON_BASE_KLL. Did you mean RLMON_BASE_KL?" in left.err


@pytest.mark.trl
def test_check_says_whether_alerts_are_posted(
    rlmon: Rlmon, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows_of(rlmon("check", config(GOOD)))["webhook"].split()[0] == "none"
    monkeypatch.setenv("RLMON_WEBHOOK_URL", "https://hooks.slack.com/services/SECRET")
    left = rlmon("check", config(GOOD))
    assert "a webhook is set (slack)" in rows_of(left)["webhook"]
    assert "SECRET" not in left.out + left.err
    # Under `env:` it is read with a script of one's own as well; the file wins over the environment.
    left = rlmon("check", config(GOOD + "env: {RLMON_WEBHOOK_URL: 'https://x.example/SECRET'}\n"))
    assert "a webhook is set (json)" in rows_of(left)["webhook"]
    left = rlmon("check", config(GOOD + "env: {RLMON_WEBHOOK_URL: 'http://x.example/SECRET'}\n"))
    assert (left.code, left.out) == (2, "")
    assert "RLMON_WEBHOOK_URL is an http address of another machine" in left.err
    assert "SECRET" not in left.err


def test_alerts_says_what_is_set_and_tries_it(rlmon: Rlmon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLMON_WEBHOOK_URL", raising=False)
    assert rlmon("alerts") == (0, "No webhook is set. Type: export RLMON_WEBHOOK_URL=https://...\n", "")
    assert rlmon("alerts", "--test").code == 2
    with serving(200, 403) as server:
        monkeypatch.setenv("RLMON_WEBHOOK_URL", server.url)
        assert rlmon("alerts") == (0, "A webhook is set (json). To try it: rlmon alerts --test\n", "")
        assert server.got == []
        assert rlmon("alerts", "--test") == (0, "The webhook (json) took a test alert. Look for it there.\n", "")
        assert json.loads(server.got[0][2])["kind"] == "test"
        left = rlmon("alerts", "--test")
    assert (left.code, left.out) == (2, "")
    assert left.err.endswith("did not take the test alert: it answered 403.\n")
    monkeypatch.setenv("RLMON_WEBHOOK_URL", "https://me:SECRET@x.example")
    left = rlmon("alerts")
    assert left.code == 2
    assert "SECRET" not in left.err


def rows_of(left: Left) -> dict[str, str]:
    """Signal to the rest of its line."""
    assert left.code == 0, left.err
    return dict(line.split("  ", 1) for line in left.out.splitlines())


@pytest.mark.trl
def test_check_says_what_is_captured_and_what_can_never_fire(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    rows = rows_of(rlmon("check", config(GOOD)))
    assert rows["entropy"].split()[0] == "yes"
    assert rows["detector kl-drift"].split()[0] == "armed"
    # 16 / 4 = 4 prompts a round: 32 prompts take 8 rounds
    assert rows["baseline"].endswith("the first 8 rounds of 4 prompts x 4 completions a process")

    rows = rows_of(rlmon("check", config(GOOD + 'rlmon_base_kl: "off"\nmax_steps: 5\n')))
    assert rows["kl"].split(maxsplit=1) == ["skip", "rlmon_base_kl is off"]
    assert rows["detector kl-drift"].split(maxsplit=1) == ["never", "rlmon_base_kl is off"]
    assert rows["baseline"].endswith("max_steps: 5 ends within the baseline (5 rounds)")
    assert rows["detector format-collapse"].split(maxsplit=1) == ["never", "compares with the baseline"]
    assert rows["detector non-finite"].split()[0] == "armed"


@pytest.mark.trl
def test_check_of_a_sample_of_the_base(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    short = GOOD + "max_steps: 5\n"
    rows = rows_of(rlmon("check", config(short + "rlmon_base_sample: 128\n")))
    assert "128 completions of the base, sampled before the first update" in rows["baseline"]
    assert rows["detector format-collapse"].split()[0] == "armed"
    # Token entropies show in training alone, and 5 rounds are no baseline of them.
    assert rows["detector entropy-collapse"].split(maxsplit=1) == ["never", "compares with the baseline"]
    assert rows["baseline"].endswith("(max_steps: 5 ends within these)")
    # 16 completions of 4 prompts are no baseline; one of all that 5 rounds and these hold is none either.
    rows = rows_of(rlmon("check", config(short + "rlmon_base_sample: 1\n")))
    assert rows["baseline"].endswith("max_steps: 5 ends within the baseline (5 rounds)")
    assert rows["detector format-collapse"].split()[0] == "never"
    rows = rows_of(rlmon("check", config(GOOD + "rlmon_base_sample: 1\n")))
    assert rows["baseline"].split(maxsplit=1)[1].startswith("1 completions of the base are too few for a baseline")

    left = rlmon("check", config(GOOD + "rlmon_base_sample: 128\nuse_vllm: true\n"))
    assert left.code == 2
    assert "rlmon_base_sample cannot work here: what vLLM draws" in left.err
    left = rlmon("check", config(GOOD + "reward_funcs: [rlmon.trl.probe]\nenv: {RLMON_BASE_SAMPLE: '128'}\n"))
    assert "too late to sample the base" in left.err
    assert "base sample" not in rows_of(left)


@pytest.mark.trl
def test_check_for_rloo(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    left = rlmon("check", config(GOOD), "--trainer", "rloo")
    assert "RLOOTrainer" in left.out.splitlines()[0]
    assert "advantages" in rows_of(left)


@pytest.mark.trl
def test_check_for_ppo(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    file = config(GOOD + "kl_coef: 0.4\ncritic: shared\nrlmon_policy: protect\n")
    left = rlmon("check", file, "--trainer", "ppo")
    assert "PPOTrainer" in left.out.splitlines()[0]
    rows = rows_of(left)
    assert rows["value"].split()[0] == "yes"
    assert rows["detector silent-groups-bad"].split(maxsplit=1) == ["never", "a critic is the baseline, not the group"]
    # The rule's bound is .3, and the penalty begins above it.
    assert "kl_coef is 0.4 from the start" in rows["rule stay-near"]
    assert rows["rule hold-formats"].split()[0] == "acts"

    left = rlmon("check", config(GOOD + "beta: 0.1\n"), "--trainer", "ppo")
    assert left.code == 2
    assert "Set kl_coef, and leave beta at 0" in left.err
    left = rlmon("check", config(GOOD + "kl_coef: 0.1\n"))
    assert "kl_coef: PPOConfig has these. Type: rlmon check --trainer ppo" in left.err
    assert rows_of(left)["value"].split()[0] == "skip"


@pytest.mark.trl
def test_check_of_a_file_for_a_gpu(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    import torch

    left = rlmon("check", config("model_name_or_path: base\nper_device_train_batch_size: 16\n"))
    assert left.code == 0
    assert ("This machine has no GPU" in left.err) == (not torch.cuda.is_available())


@pytest.mark.trl
def test_check_of_the_probe_reads_env(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    functions = "reward_funcs: [accuracy_reward, rlmon.trl.probe]\n"
    rows = rows_of(rlmon("check", config(GOOD + functions + 'env: {RLMON_BASE_KL: "off"}\n')))
    assert rows["kl"].split()[0] == "skip"
    left = rlmon("check", config(GOOD + functions + "reward_weights: [1.0, 0.5]\n"))
    assert (left.code, left.out) == (2, "")
    assert "rlmon.trl.probe has the weight 0.5 in reward_weights; it must be 0.0" in left.err
    left = rlmon("check", config(GOOD + functions + "env: {RLMON_BASE_KLL: x}\n"))
    assert (left.code, left.out) == (2, "")
    assert "Did you mean RLMON_BASE_KL" in left.err


@pytest.mark.trl
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "cannot be read as YAML"),
        (GOOD + "rlmon_base_kl_evry: 3\n", "Did you mean rlmon_base_kl_every?"),
        (GOOD + "rlmon_store_text: ful\n", "Did you mean full?"),
        (GOOD + "num_generations: 3\n", "refuses this file"),
        (GOOD + "learning_rate: fast\n", "refuses this file"),
    ],
)
def test_check_refuses_what_would_be_refused(rlmon: Rlmon, config: Callable[[str], Path], text: str, said: str) -> None:
    left = rlmon("check", config(text))
    assert (left.code, left.out) == (2, "")
    assert said in left.err


def check_rules(left: Left) -> dict[str, tuple[str, str]]:
    """Of each rule, and of the policy, its status and what is said of it."""
    found = {}
    for line in left.out.splitlines():
        what, status, *rest = (part.strip() for part in line.split("  ") if part)
        if what == "policy" or what.startswith("rule "):
            found[what.removeprefix("rule ")] = (status, "  ".join(rest))
    return found


@pytest.mark.trl
def test_check_without_a_policy_names_the_first_to_try(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    assert check_rules(rlmon("check", config(GOOD)))["policy"][0] == "none"


RULES = """
rlmon_policy:
  dry_run: DRY
  rules:
    hold: {when: always, do: mode_marginal}
    budget: {when: {metric: rlmon/kl/mean, above: 0.3}, do: kl_penalty}
    bound: {when: {finding: lone-success}, do: {action: winsorise, limit: 2.0}}
"""
ACTING, DRY = RULES.replace("DRY", "false"), RULES.replace("DRY", "true")


@pytest.mark.trl
def test_check_says_what_each_rule_would_do(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    left = rlmon("check", config(GOOD + ACTING + "beta: 0.01\nrlmon_base_kl: 'off'\nmax_steps: 100\n"))
    assert left.code == 2
    rules = check_rules(left)
    assert rules["policy"] == ("yes", "3 rules: 1 acting, 2 refused")
    assert rules["hold"] == ("acts", "mode_marginal, always")
    # Its metric is not measured; and no advantage of 4 passes 3 / sqrt(4) = 1.5.
    assert rules["budget"][0] == "refused"
    assert "rlmon/kl/mean is never measured: rlmon_base_kl is off (set rlmon_base_kl: auto)" in rules["budget"][1]
    assert rules["bound"][0] == "refused"
    assert "never pass 1.5" in rules["bound"][1]
    left = rlmon("check", config(GOOD + "num_generations: 16\nmax_steps: 100\n" + DRY))
    # 15 / sqrt(16) = 3.75
    assert check_rules(left)["bound"][0] == "dry run"
    assert check_rules(left)["policy"][1].startswith("3 rules: 3 dry run: nothing is changed")


@pytest.mark.trl
def test_check_of_a_rule_that_training_would_refuse(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    left = rlmon("check", config(GOOD + ACTING + "rlmon_base_kl: 'off'\n"))
    assert left.code == 2
    assert check_rules(left)["budget"][0] == "refused"
    assert "training would be refused before its first step: rule budget: kl_penalty needs a reference" in left.err
    left = rlmon("check", config(GOOD + ACTING + "fsdp: full_shard\n"))
    assert left.code == 2
    assert "cannot make a reference under FSDP" in check_rules(left)["budget"][1]
    # A dry run is not refused: it changes nothing.
    assert rlmon("check", config(GOOD + DRY + "fsdp: full_shard\n")).code == 0


@pytest.mark.trl
@pytest.mark.parametrize(
    ("rule", "settings", "status", "said"),
    [
        ("{when: {finding: kl-drift}, do: winsorise}", "rlmon_base_kl: 'off'", "refused", "kl-drift can never fire"),
        ("{when: {metric: rlmon/format/share/haiku, below: 0.1}, do: stop}", "", "refused", "no format mode 'haiku'"),
        ("{when: {metric: rlmon/format/share/json, below: 0.1}, do: stop}", "", "acts", "json below 0.1"),
        ("{when: {metric: rlmon/format/top_share, above: 1}, do: stop}", "", "refused", "never above 1"),
        # 30 steps / 10 = 3 values of KL; the base alone takes 8 rounds of 4 prompts
        (
            "{when: {metric: rlmon/kl/mean, above: 2, of: base}, do: stop}",
            "max_steps: 30",
            "never",
            "measured 3 times",
        ),
        ("{when: {metric: rlmon/kl/mean, above: 2, of: base}, do: stop}", "max_steps: 90", "acts", "kl/mean above 2"),
        ("{when: {any: [{finding: kl-drift}, always]}, do: stop}", "rlmon_base_kl: 'off'", "acts", "always"),
        ("{when: {all: [{finding: kl-drift}, always]}, do: stop}", "rlmon_base_kl: 'off'", "refused", "kl-drift"),
        ("{when: always, do: roll_back}", "save_strategy: 'no'", "refused", "save_strategy is no"),
        ("{when: always, do: roll_back}", "max_steps: 100", "never", "first checkpoint would come at step 500"),
        ("{when: always, do: roll_back}", "{max_steps: 100, save_steps: 10}", "acts", "roll_back, always"),
        ("{when: always, do: reset_reference}", "", "refused", "nothing to reset"),
        ("{when: always, do: kl_penalty}", "{sync_ref_model: true, beta: 0.1}", "refused", "sync_ref_model"),
        ("{when: always, do: kl_penalty}", "beta: 0.3", "refused", "bounds end at 0.3"),
        # 3 epochs of 4 completions are 12 attempts at a prompt; 16 are needed
        ("{when: always, do: defer}", "", "never", "12 attempts"),
        ("{when: always, do: defer}", "num_train_epochs: 4", "acts", "defer, always"),
    ],
)
def test_check_of_one_rule(
    rlmon: Rlmon, config: Callable[[str], Path], rule: str, settings: str, status: str, said: str
) -> None:
    settings = settings.strip("{}").replace(", ", "\n")
    left = rlmon("check", config(f"{GOOD}{settings}\nrlmon_policy: {{rules: {{r: {rule}}}}}\n"))
    found = check_rules(left)["r"]
    assert found[0] == status
    assert said in found[1]
    assert left.code == (2 if status == "refused" else 0)


@pytest.mark.trl
def test_check_of_a_policy_with_a_mistake_and_of_the_probes(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    left = rlmon("check", config(GOOD + "rlmon_policy: {rules: {r: {when: always, do: stopp}}}\n"))
    assert (left.code, left.out) == (2, "")
    assert "Did you mean stop?" in left.err
    functions = "reward_funcs: [accuracy_reward, rlmon.trl.probe]\nenv: {RLMON_POLICY: observe}\n"
    assert check_rules(rlmon("check", config(GOOD + functions)))["hold-formats"][0] == "dry run"


# ---- policy


def test_policy_lists_presets_and_actions(rlmon: Rlmon) -> None:
    left = rlmon("policy")
    assert left.code == 0
    for name in (*policy_file.preset_names(), *ACTIONS):
        assert f"  {name} " in left.out
    rows = json.loads(rlmon("policy", "--format", "json").out)
    assert {row["name"] for row in rows} == {*policy_file.preset_names(), *ACTIONS}
    assert rlmon("policy", "--format", "yaml").code == 2


def test_policy_shows_rules_with_what_differs(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    source = config("rules: {a: {when: {metric: rlmon/kl/mean, above: 0.3}, do: kl_penalty}, "
                    "b: {when: always, do: {action: winsorise, limit: 3}, dry_run: true}}")  # fmt: skip
    lines = [" ".join(line.split()) for line in rlmon("policy", source).out.splitlines()]
    assert lines == [
        "rule do when not the default",
        "a kl_penalty rlmon/kl/mean above 0.3 (mean of 5)",
        "b winsorise (dry run) always limit 3.0",
        "",
        "1 of 2 rules act.",
    ]
    assert rlmon("policy", "observe").out.endswith(
        " rules act. Nothing is changed; the log says what would have been.\n"
    )


@pytest.mark.parametrize("name", policy_file.preset_names())
def test_policy_as_yaml_can_be_edited_and_as_json_says_all(
    rlmon: Rlmon, config: Callable[[str], Path], name: str
) -> None:
    left = rlmon("policy", name, "--format", "yaml")
    assert left.code == 0
    again = rlmon("policy", config(left.out), "--format", "json").out
    assert json.loads(again) == json.loads(rlmon("policy", name, "--format", "json").out)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model_name_or_path: x\nbeta: 0.1\n",
            "and neither rules nor extends. For the file of a trainer type: rlmon check.",
        ),
        (None, "is neither a file nor a preset"),
        ("rules: {a: {when: always, do: stopp}}", "Did you mean stop?"),
    ],
)
def test_policy_refuses_what_a_run_would(
    rlmon: Rlmon, config: Callable[[str], Path], text: str | None, said: str
) -> None:
    left = rlmon("policy", "nope" if text is None else config(text))
    assert (left.code, left.out) == (2, "")
    assert said in left.err


@pytest.mark.trl
def test_check_names_the_settings_it_does_not_know(rlmon: Rlmon, config: Callable[[str], Path]) -> None:
    left = rlmon("check", config(GOOD + "my_own: 1\n"))
    assert left.code == 0
    assert "rlmon has them: my_own." in left.err
