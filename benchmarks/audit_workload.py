"""A large synthetic run for benchmarks of the audit, as TRL's completions/*.parquet or as one JSON Lines file.

    python benchmarks/audit_workload.py out/audit-100k --rows 100000
    python benchmarks/audit_workload.py out/audit-1m --rows 1000000 --jsonl

50 completions of about 200 words a step (5 prompts, 10 each). From 40 to 75 % of the steps the completions turn into 3
templates with other numbers in them, as in a real collapse: exact duplicates stay rare.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PROMPTS_PER_STEP = 5
GROUP_SIZE = 10
SENTENCES = 18
SYLLABLES = ("ta", "ri", "mo", "sel", "qua", "ben", "lor", "vi", "and", "pro", "the", "cal", "num", "sum", "ex", "ist")


class Writer:
    """Makes the rows of one step after another."""

    def __init__(self, steps: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.steps = steps
        words = sorted({"".join(self.rng.choices(SYLLABLES, k=self.rng.randint(1, 3))) for _ in range(4_000)})
        self.sentences = [self._sentence(words) for _ in range(20_000)]
        self.templates = [[self.rng.choice(self.sentences) for _ in range(SENTENCES)] for _ in range(3)]
        self.names = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn")

    def _sentence(self, words: list[str]) -> str:
        chosen = self.rng.choices(words, k=self.rng.randint(7, 13))
        if self.rng.random() < 0.5:
            chosen[self.rng.randrange(len(chosen))] = str(self.rng.randint(2, 900))
        return " ".join(chosen).capitalize() + "."

    def step(self, step: int) -> dict[str, list[object]]:
        """Columns of one step, named as TRL names them."""
        rng = self.rng
        progress = step / self.steps
        collapsed = min(1.0, max(0.0, (progress - 0.4) / 0.35))
        names = ("step", "prompt", "completion", "accuracy_reward", "advantage")
        columns: dict[str, list[object]] = {name: [] for name in names}
        for _ in range(PROMPTS_PER_STEP):
            a, b = rng.randint(10, 999), rng.randint(10, 999)
            prompt = f"{rng.choice(self.names)} has {a} figs and gets {b} more. How many are there now?"
            rewards = [float(rng.random() < 0.4 + 0.4 * progress) for _ in range(GROUP_SIZE)]
            mean = sum(rewards) / GROUP_SIZE
            for reward in rewards:
                if rng.random() < collapsed:
                    parts = list(rng.choice(self.templates))
                else:
                    parts = rng.choices(self.sentences, k=SENTENCES)
                answer = a + b if reward else rng.randint(20, 1998)
                boxed = rng.random() < 0.5 + collapsed
                ending = f"The answer is \\boxed{{{answer}}}." if boxed else f"So it is {answer}."
                columns["step"].append(step)
                columns["prompt"].append(prompt)
                columns["completion"].append(" ".join(parts) + f" We add {a} and {b}. " + ending)
                columns["accuracy_reward"].append(reward)
                columns["advantage"].append(reward - mean)
        return columns


def write_trl(out: Path, rows: int) -> None:
    """``out/completions/*.parquet`` and ``out/trainer_state.json``."""
    steps = rows // (PROMPTS_PER_STEP * GROUP_SIZE)
    writer = Writer(steps)
    (out / "completions").mkdir(parents=True)
    history = []
    for step in range(1, steps + 1):
        columns = writer.step(step)
        pq.write_table(pa.table(columns), out / "completions" / f"completions_{step:05d}.parquet")
        reward = sum(columns["accuracy_reward"]) / len(columns["accuracy_reward"])  # type: ignore[arg-type]
        entropy = 0.62 - 0.5 * min(1.0, max(0.0, (step / steps - 0.4) / 0.35)) + writer.rng.gauss(0, 0.01)
        history.append({"step": step, "epoch": step / steps, "reward": reward, "rewards/accuracy_reward/mean": reward,
                        "entropy": entropy, "loss": 0.0, "grad_norm": 0.1})  # fmt: skip
    state = {"global_step": steps, "max_steps": steps, "logging_steps": 1, "log_history": history}
    (out / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")


def write_jsonl(out: Path, rows: int) -> None:
    """The rows as one JSON Lines file."""
    steps = rows // (PROMPTS_PER_STEP * GROUP_SIZE)
    writer = Writer(steps)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            columns = writer.step(step)
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(("step", "prompt", "completion", "reward", "advantage"), values, strict=True))
                file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--jsonl", action="store_true")
    arguments = parser.parse_args()
    (write_jsonl if arguments.jsonl else write_trl)(arguments.out, arguments.rows)


if __name__ == "__main__":
    main()
