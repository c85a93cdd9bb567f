"""What we rely on inside TRL, pinned for the installed version: a new TRL that moves one of these fails here first.

`make test-matrix` repeats this file on the oldest and newest supported versions.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap

import pytest

pytestmark = pytest.mark.trl

trl = pytest.importorskip("trl")

TRAINERS = (trl.GRPOTrainer, trl.RLOOTrainer)

PARAMETERS = {
    "_prepare_inputs": ["self", "generation_batch"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["self", "model", "inputs"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_save_checkpoint": ["self", "model", "trial"],
    "log": ["self", "logs", "start_time"],
}


def test_the_version_that_is_meant_to_be_tested() -> None:
    expected = os.environ.get("EXPECTED_TRL")
    if expected is None:
        pytest.skip("set by scripts/test_matrix.py, which puts another TRL first on PYTHONPATH")
    assert trl.__version__ == expected


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("method", sorted(PARAMETERS))
def test_parameters_of_the_methods_we_wrap(trainer: type, method: str) -> None:
    assert list(inspect.signature(getattr(trainer, method)).parameters) == PARAMETERS[method]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_generation_needs_prompts_alone(trainer: type) -> None:
    """What samples the base calls it."""
    parameters = list(inspect.signature(trainer._generate).parameters.values())  # type: ignore[attr-defined]
    assert [parameter.name for parameter in parameters[:2]] == ["self", "prompts"]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters[2:])


@pytest.mark.parametrize("trainer", TRAINERS)
def test_scoring_gathers_once_at_its_end(trainer: type) -> None:
    """A rank whose reward function raised while the base is scored enters that one sum."""
    gathered = [call for call in calls(trainer._calculate_rewards) if getattr(call.func, "id", "") == "gather"]  # type: ignore[attr-defined]
    assert len(gathered) == 1
    lines = textwrap.dedent(inspect.getsource(trainer._calculate_rewards)).strip().splitlines()  # type: ignore[attr-defined]
    assert "gather(" in lines[-2]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_per_token_logps_take_the_model_first(trainer: type) -> None:
    # The tail of keywords differs between versions; we pass it through untouched.
    names = list(inspect.signature(trainer._get_per_token_logps_and_entropies).parameters)  # type: ignore[attr-defined]
    assert names[:2] == ["self", "model"]


def calls(function: object) -> list[ast.Call]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_loss_asks_for_entropies_by_keyword(trainer: type) -> None:
    asked = [
        keyword.value
        for call in calls(trainer._compute_loss)  # type: ignore[attr-defined]
        if isinstance(call.func, ast.Attribute) and call.func.attr == "_get_per_token_logps_and_entropies"
        for keyword in call.keywords
        if keyword.arg == "compute_entropy"
    ]
    assert [ast.unparse(value) for value in asked] == ["True"]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_methods_are_called_through_self(trainer: type) -> None:
    # Our hooks are instance attributes: they are seen only where TRL writes self.method(...).
    source = inspect.getsource(trainer)
    for method in ("_generate_and_score_completions", "_generate", "_calculate_rewards", "_compute_loss"):
        assert f"self.{method}(" in source


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_a_generation_returns_first(trainer: type) -> None:
    # Prompt ids and tool masks are seen nowhere else before they are padded and masked.
    returned = re.sub(r"\s+", " ", inspect.getsource(trainer._generate))  # type: ignore[attr-defined]
    masked = "tool_mask, " if trainer is trl.GRPOTrainer else ""
    assert re.search(rf"return \(? ?prompt_ids, completion_ids, {masked}completions\b", returned)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    "attribute",
    ["_metrics", "_logs", "_buffered_inputs", "_step", "beta", "ref_model", "num_generations", "reward_func_names",
     "reward_weights", "temperature"],
)  # fmt: skip
def test_attributes_we_read(trainer: type, attribute: str) -> None:
    assert f"self.{attribute}" in inspect.getsource(trainer)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_rows_are_shuffled_in_unison_after_scoring(trainer: type) -> None:
    # Row identity travels as one more tensor of the dictionary, so these two must still treat all tensors alike.
    source = inspect.getsource(trainer._prepare_inputs)  # type: ignore[attr-defined]
    assert "shuffle_sequence_dict(" in source
    assert "split_tensor_dict(" in source


def test_shuffling_and_splitting_carry_a_tensor_of_ours() -> None:
    import torch
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    torch.manual_seed(0)
    rows = torch.arange(8)
    shuffled = shuffle_sequence_dict({"completion_ids": rows * 10, "rlmon_row": rows, "absent": None})
    assert shuffled["rlmon_row"].tolist() != rows.tolist()
    assert (shuffled["completion_ids"] == shuffled["rlmon_row"] * 10).all()
    parts = split_tensor_dict(shuffled, 4)
    assert [part["rlmon_row"].tolist() for part in parts] == shuffled["rlmon_row"].view(4, 2).tolist()


def test_reward_functions_get_the_trainers_bound_methods() -> None:
    source = inspect.getsource(trl.GRPOTrainer._calculate_rewards)
    assert "log_metric" in source
    assert "log_extra" in source


def test_the_checkpoint_path_reaches_the_hook_that_we_wrap() -> None:
    import transformers

    parameters = list(inspect.signature(transformers.Trainer._load_optimizer_and_scheduler).parameters)
    assert parameters == ["self", "checkpoint"]
    assert list(inspect.signature(transformers.Trainer._get_output_dir).parameters) == ["self", "trial"]


def test_the_parser_takes_defaults_from_a_mapping() -> None:
    parameters = list(inspect.signature(trl.TrlParser.set_defaults_with_config).parameters)
    assert parameters == ["self", "kwargs"]
