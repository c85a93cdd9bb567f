"""Writes the fixtures under tests/golden/foreign/: python tests/support/make_foreign.py [NAME...]

``trl`` and ``trl-chat`` are what TRL itself left behind in a tiny real run (its version is in ``truth.json``); the
truth beside them was kept by the reward function, which sees every completion that is scored and whether the trainer
was evaluating. All others are written here from the documented fields of those tools, none of which was run.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FOREIGN = Path(__file__).resolve().parents[1] / "golden" / "foreign"


def trl_run(folder: Path, *, conversational: bool, eval_rows: int, **settings: Any) -> None:
    """A real GRPO run in ``folder``: ``completions/``, ``trainer_state.json`` and the truth in ``truth.json``."""
    import tiny
    import trl

    truth: list[dict[str, Any]] = []
    trainers: list[Any] = []

    def first_digit(prompts: Sequence[Any], completions: Sequence[Any], trainer_state: Any, **_: Any) -> list[float]:
        split = "train" if trainers[0].model.training else "eval"
        step = trainer_state.global_step + (split == "train")
        rewards = tiny.has_digit(completions)
        for prompt, completion, reward in zip(prompts, completions, rewards, strict=True):
            row = {"step": step, "split": split, "prompt": tiny.text(prompt), "completion": tiny.text(completion)}
            truth.append({**row, "first_digit": reward, "short": float(len(tiny.text(completion)) < 20)})
        return rewards

    def short(completions: Sequence[Any], log_extra: Any = None, **_: Any) -> list[float | None]:
        if log_extra is not None:
            log_extra("task", ["sums" if i % 2 else "words" for i in range(len(completions))])
        return [float(len(tiny.text(completion)) < 20) for completion in completions]

    trainer = tiny.trainer(
        folder,
        reward=[first_digit, short],
        train=tiny.dataset(12, conversational),
        extra={"eval_dataset": tiny.dataset(40, conversational).select(range(40 - eval_rows, 40))},
        log_completions=True,
        num_completions_to_print=0,
        **settings,
    )
    trainers.append(trainer)
    trainer.train()
    trainer.save_state()
    shutil.rmtree(folder.parent / "model-0")
    truth_of_run = {"trl": trl.__version__, "settings": {**settings, "eval_rows": eval_rows}, "rows": truth}
    (folder / "truth.json").write_text(json.dumps(truth_of_run, indent=0) + "\n", encoding="utf-8")


def trl(folder: Path) -> None:
    trl_run(
        folder,
        conversational=False,
        eval_rows=2,
        max_steps=10,
        steps_per_generation=2,
        eval_strategy="steps",
        eval_steps=3,
        per_device_eval_batch_size=8,
        reward_weights=[1.0, 0.5],
    )


def trl_chat(folder: Path) -> None:
    trl_run(
        folder,
        conversational=True,
        eval_rows=4,
        max_steps=8,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=4,
        per_device_eval_batch_size=8,
    )


STEPS, GROUPS, SIZE = 3, 2, 4
"""Every written fixture has the rows of ``sampled()``: steps 1 to 3, two groups of four completions a step."""


def sampled() -> list[dict[str, Any]]:
    """The rows that every written fixture holds, hostile texts among them."""
    texts = ["The answer is 4.", "\\boxed{4}", "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "\x1b[31mred", "",
             "deux\u202efois", "4 # \U0001f600\nline two"]  # fmt: skip
    rows = []
    for step in range(1, STEPS + 1):
        for group in range(GROUPS):
            for index in range(SIZE):
                reward = float((step + group + index) % 3 == 0)
                rows.append(
                    {
                        "step": step,
                        "group": group,
                        "index": index,
                        "prompt": f"How much is {step}+{group}?",
                        "completion": texts[(step * 3 + group * SIZE + index) % len(texts)],
                        "reward": reward,
                        "advantage": reward - 0.25,
                    }
                )
    return rows


def at(step: int) -> list[dict[str, Any]]:
    return [row for row in sampled() if row["step"] == step]


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def verl_record(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input": row["prompt"],
        "output": row["completion"],
        "gts": "4",
        "score": row["reward"],
        "step": row["step"],
        "acc": bool(row["reward"]),
    }


def verl(folder: Path) -> None:
    for step in range(1, STEPS + 1):
        records = [verl_record(row) | {"uid": f"q_{row['group']}_{row['index']}_0"} for row in at(step)]
        write_lines(folder / "rollouts" / f"{step}.jsonl", records)
    held_out = [verl_record(row) | {"reward": row["reward"]} for row in at(3)]
    write_lines(folder / "validation" / "3.jsonl", held_out)


def verl_legacy(folder: Path) -> None:
    for step in range(1, STEPS + 1):
        write_lines(folder / f"{step}.jsonl", [verl_record(row) for row in at(step)])


def episode(row: Mapping[str, Any]) -> dict[str, Any]:
    node = {"parent": 0, "message": {"role": "user", "content": row["prompt"]}, "sampled": False, "token_ids": [5, 6]}
    answer = {
        "parent": 1,
        "message": {"role": "assistant", "content": row["completion"]},
        "sampled": True,
        "token_ids": [7, 8, 9],
        "mask": [1, 1, 1],
        "logprobs": [-0.1, -0.2, -0.3],
        "advantages": [row["advantage"]] * 3,
    }
    trace = {
        "nodes": [node, answer],
        "rewards": {"correct": {"score": row["reward"], "weight": 1.0}, "short": {"score": 1.0, "weight": 0.0}},
        "metrics": {"turns": 1},
        "stop_condition": "length" if row["index"] == 0 else "stop",
        "is_completed": True,
    }
    name = f"{row['step']}-{row['group']}"
    return {
        "id": f"{name}-{row['index']}",
        "env": "sums",
        "task": {"n": row["group"]},
        "group": {"id": name},
        "run": {},
        "ok": True,
        "errors": [],
        "traces": [trace],
    }


def prime_rl(folder: Path) -> None:
    for step in range(1, STEPS + 1):
        episodes = [episode(row) for row in at(step)]
        write_lines(folder / f"rollouts/step_{step}/train/all/traces.jsonl", episodes)
        write_lines(folder / f"rollouts/step_{step}/train/effective/traces.jsonl", episodes[:4])
    write_lines(folder / "rollouts/step_3/eval/all/traces.jsonl", [episode(row) for row in at(3)])
    scalars = [
        {"step": s, "time": 1.5 * s, "entropy/all/mean": 1 / s, "mismatch_kl/all/mean": 0.01 * s} for s in (1, 2, 3)
    ]
    write_lines(folder / "metrics.jsonl", scalars)


def verifiers(folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "eval.json").write_text("{}\n", encoding="utf-8")
    write_lines(folder / "traces.jsonl", [episode(row) for row in sampled()])


def nemo_rl(folder: Path) -> None:
    for step in range(1, STEPS + 1):
        records = [
            {
                "content": [row["prompt"], row["completion"]],
                "rewards": row["reward"],
                "input_lengths": 9,
                "token_ids": list(range(9)),
                "token_loss_mask": [0] * 4 + [1] * 5,
                "sample_loss_mask": 1.0,
                "advantages": [row["advantage"]] * 9,
                "generation_logprobs": [-0.5] * 9,
                "prev_logprobs": [-0.5] * 9,
                "idx": index,
            }
            for index, row in enumerate(at(step))
        ]
        write_lines(folder / f"train_data_step{step}.jsonl", records)
    held_out = [
        {"content": [row["prompt"], row["completion"]], "rewards": row["reward"], "idx": index}
        for index, row in enumerate(at(3))
    ]
    write_lines(folder / "val_data_step3.jsonl", held_out)


def tinker(folder: Path) -> None:
    for step in range(1, STEPS + 1):
        records = [
            {
                "schema_version": 1,
                "split": "train",
                "iteration": step,
                "group_idx": row["group"],
                "traj_idx": row["index"],
                "tags": ["sums"],
                "sampling_client_step": step - 1,
                "total_reward": row["reward"],
                "final_reward": row["reward"],
                "trajectory_metrics": {},
                "steps": [{"step_idx": 0, "ob_len": 4, "ac_len": 5 + row["index"], "reward": row["reward"]}],
                "final_ob_len": 9,
            }
            for row in at(step)
        ]
        write_lines(folder / f"iteration_{step:06d}" / "train_rollout_summaries.jsonl", records)
    scalars = [
        {"step": s, "progress/batch": s, "optim/entropy": 1 / s, "optim/kl_sample_train_v1": 0.01 * s}
        for s in (1, 2, 3)
    ]
    write_lines(folder / "metrics.jsonl", scalars)


def skyrl(folder: Path) -> None:
    for step in range(1, STEPS + 1):
        records = [
            {
                "input_prompt": row["prompt"],
                "output_response": row["completion"],
                "score": row["reward"],
                "stop_reason": "length" if row["index"] == 0 else "stop",
                "env_class": "sums",
                "env_extras": {},
                "data_source": "sums",
            }
            for row in at(step)
        ]
        write_lines(folder / f"dumped_evals/global_step_{step}_evals/sums.jsonl", records)


def areal(folder: Path) -> None:
    for row in sampled():
        path = folder / f"rollout/{row['step']}/task{row['group']}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "task_id": f"task{row['group']}",
            "sample_idx": row["index"],
            "seqlen": 9,
            "prompt_len": 4,
            "head_version": row["step"],
            "tail_version": row["step"],
            "reward": row["reward"],
            "prompt": row["prompt"],
            "completion": row["completion"],
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def rft_faultbench(folder: Path) -> None:
    """The layout of RFT-FaultBench (arXiv 2605.04431) by its documents; the collection itself was not at hand."""
    rows = sampled()
    trajectories = [
        {
            "metadata": {
                "rollout_step": row["step"],
                "group_id": f"{row['step']}-{row['group']}",
                "fault_injection": {"fault_injection_type": "reward_noise", "fault_injection_strength": 0.5},
            },
            "metrics": {
                "reward": row["reward"],
                "return": row["reward"],
                "response_length": 5 + row["index"],
                "advantage_mean": row["advantage"],
                "advantage_std": 0.0,
                "repetition_ratio": 0.1,
                "unique_token_ratio": 0.9,
                "tool_call_count": 0,
                "tool_error_count": 0,
            },
            "flags": {"empty_response": False, "short_response": row["index"] == 0, "long_response": False},
        }
        for row in rows
    ]
    steps = [
        {"metrics": {"reward": 0.5, "kl": 0.01 * s, "entropy": 1 / s, "policy_loss": 0.1, "response_length": 6.5}}
        for s in range(1, STEPS + 1)
    ]
    write_lines(folder / "telemetry" / "openrlhf_train_trajectory.jsonl", trajectories)
    write_lines(folder / "telemetry" / "openrlhf_train_train_step.jsonl", steps)


def plain(folder: Path) -> None:
    """The rows as somebody's own files: CSV and Parquet with names of their own."""
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["step", "question", "written", "points"])
        writer.writeheader()
        for row in sampled():
            writer.writerow(
                {"step": row["step"], "question": row["prompt"], "written": row["completion"], "points": row["reward"]}
            )
    table = pa.table(
        {
            "update": [row["step"] for row in sampled()],
            "chat": [[{"role": "user", "content": row["prompt"]}] for row in sampled()],
            "written": [row["completion"] for row in sampled()],
            "marks": [{"total": row["reward"]} for row in sampled()],
        }
    )
    pq.write_table(table, folder / "rows.parquet", row_group_size=5)


FIXTURES: Mapping[str, Callable[[Path], None]] = {
    "trl": trl,
    "trl-chat": trl_chat,
    "verl": verl,
    "verl-legacy": verl_legacy,
    "prime-rl": prime_rl,
    "verifiers": verifiers,
    "nemo-rl": nemo_rl,
    "tinker-cookbook": tinker,
    "skyrl": skyrl,
    "areal": areal,
    "rft-faultbench": rft_faultbench,
    "plain": plain,
}


def main(names: list[str]) -> None:
    for name in names or FIXTURES:
        folder = FOREIGN / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        FIXTURES[name](folder)


if __name__ == "__main__":
    main(sys.argv[1:])
