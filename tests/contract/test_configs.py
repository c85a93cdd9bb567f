"""Every YAML file in ``configs/`` parses with the program that it names, and the programs import without running."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "policy.yaml")
PROGRAMS = sorted((ROOT / "trainers").glob("*.py"))

pytestmark = [pytest.mark.trl]


def load(program: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"program_{program.stem}", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program_of(config: Path) -> Path:
    """The program for a config: the one its first comment names, else GRPO's."""
    named = re.search(r"trainers/(train_\w+\.py)", config.read_text())
    return ROOT / "trainers" / (named.group(1) if named else "train_grpo.py")


def test_there_is_something_to_test() -> None:
    assert {path.name for path in CONFIGS} >= {"grpo.yaml", "rloo.yaml", "ppo.yaml", "smollm2.yaml", "smollm2_ppo.yaml"}
    assert {path.name for path in PROGRAMS} >= {"train_grpo.py", "train_rloo.py", "train_ppo.py"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_config_parses_and_every_key_is_known(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parsed = load(program_of(config)).parser().parse_args_and_config(["--config", str(config)])
    workload, args, model, rlmon = parsed
    assert args.output_dir.startswith("out/")
    assert args.use_cpu
    assert model.model_name_or_path
    assert workload.workload in ("arithmetic", "reasoning-gym")
    assert rlmon.rlmon_base_kl == "auto"


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text((ROOT / "configs" / "grpo.yaml").read_text() + "\nrlmon_base_kl_evry: 5\n")
    with pytest.raises(ValueError, match="rlmon_base_kl_evry"):
        load(PROGRAMS[0]).parser().parse_args_and_config(["--config", str(config)])


def test_modes_and_tasks_may_be_mappings_in_yaml_and_json_on_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "modes.yaml"
    config.write_text((ROOT / "configs" / "grpo.yaml").read_text() + "\nrlmon_modes: {tagged: '^<a>'}\n")
    parser = load(ROOT / "trainers" / "train_grpo.py").parser
    *_, rlmon = parser().parse_args_and_config(["--config", str(config)])
    assert rlmon.rlmon_modes == {"tagged": "^<a>"}
    line = ["--config", str(ROOT / "configs" / "grpo.yaml"), "--rlmon_modes", '{"b": "x"}']
    workload, *_, rlmon = parser().parse_args_and_config(
        [*line, "--reasoning_gym_tasks", '{"chain_sum": {"min_terms": 2}}']
    )
    assert rlmon.rlmon_modes == {"b": "x"}
    assert workload.reasoning_gym_tasks == {"chain_sum": {"min_terms": 2}}


def test_a_success_may_be_a_number_a_name_or_both(tmp_path: Path) -> None:
    """In YAML, on the command line and in the environment: as it was written."""
    from rlmon.config import RLMonConfig

    parser = load(ROOT / "trainers" / "train_grpo.py").parser
    plain = (ROOT / "configs" / "grpo.yaml").read_text()
    for written, (function, above) in {
        "0.5": (None, 0.5),
        "accuracy_reward": ("accuracy_reward", None),
        "accuracy_reward>0.9": ("accuracy_reward", 0.9),
    }.items():
        config = tmp_path / "success.yaml"
        config.write_text(f"{plain}\nrlmon_success: {written}\n")
        *_, by_yaml = parser().parse_args_and_config(["--config", str(config)])
        line = ["--config", str(ROOT / "configs" / "grpo.yaml"), "--rlmon_success", written]
        *_, by_line = parser().parse_args_and_config(line)
        by_environment = RLMonConfig.from_env({"RLMON_SUCCESS": written})
        for one in (by_yaml, by_line, by_environment, RLMonConfig.from_mapping({"success": written})):
            assert one.success is not None
            assert (one.success.function, one.success.above) == (function, above)


def test_a_policy_may_be_a_name_or_a_mapping_in_yaml_and_on_the_command_line(tmp_path: Path) -> None:
    from rlmon.controller import load_policy

    parser = load(ROOT / "trainers" / "train_grpo.py").parser
    grpo = (ROOT / "configs" / "grpo.yaml").read_text()

    def policy(text: str, *line: str) -> object:
        config = tmp_path / "policy-run.yaml"
        config.write_text(f"{grpo}\n{text}\n")
        *_, rlmon = parser().parse_args_and_config(["--config", str(config), *line])
        return rlmon.rlmon_policy

    rule = {"rules": {"r": {"when": "always", "do": {"action": "winsorise", "limit": 2.0}}}}
    assert policy("") is None
    assert policy("rlmon_policy: protect") == "protect"
    assert policy("rlmon_policy: protect", "--rlmon_policy", "observe") == "observe"
    inline = policy("rlmon_policy: {rules: {r: {when: always, do: {action: winsorise, limit: 2.0}}}}")
    assert inline == rule
    said = policy(
        "", "--rlmon_policy", '{"rules": {"r": {"when": "always", "do": {"action": "winsorise", "limit": 2.0}}}}'
    )
    assert load_policy(said) == load_policy(inline) == load_policy(rule)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_programs_do_nothing_when_imported_and_shadow_no_package(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A script's folder comes first on sys.path: trainers/trl.py would be imported instead of TRL.
    assert program.name.startswith("train_")
    monkeypatch.setattr(sys, "argv", [program.name, "--no-such-option"])
    assert callable(load(program).main)
    assert not (program.parent / "__init__.py").exists()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--workload", "dataset"], "Nothing to train on"),
        (["--workload", "dataset", "--dataset_name", "x"], "needs reward_funcs"),
        (["--workload", "reasoning-gym"], "needs reasoning_gym_tasks"),
        (["--rlmon_store_text", "ful"], "rlmon_store_text"),
        (["--rlmon_alpha", "2"], "rlmon_alpha is a probability"),
        (["--rlmon_success", "reward_correct>nan"], "threshold must be finite"),
    ],
)
def test_programs_refuse_before_the_first_step(
    extra: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = ["--config", "configs/grpo.yaml", "--output_dir", str(tmp_path / "out"), *extra]
    try:
        code = load(ROOT / "trainers" / "train_grpo.py").main(line)
    except SystemExit as error:  # argparse knows the choices of a field itself
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_from_the_environment_survive_the_parser() -> None:
    from rlmon.config import RLMonConfig

    # The parser resolves the annotations of the dataclass in place.
    load(ROOT / "trainers" / "train_grpo.py").parser()
    config = RLMonConfig.from_env({"RLMON_BASE_KL_EVERY": "3", "RLMON_ALPHA": "0.5", "RLMON_WANDB": "off"})
    assert (config.rlmon_base_kl_every, config.rlmon_alpha, config.rlmon_wandb) == (3, 0.5, False)
