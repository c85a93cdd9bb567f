"""One rank of two-process runs: ``two_ranks.py OUT CELL...``; writes JSON per rank.

A cell is a kind and flags (``rloo``, ``lora``), joined by dashes. Kinds: ``stock`` (no monitor), ``watched``,
``straddle`` (groups lie across ranks), or a fault on rank 1 alone: ``observe`` (a metric raises), ``vector`` (its share
of the collective cannot be made), ``base`` (out of memory in the base forward), ``disk`` (no row can be written).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import rlmon.exchange
import rlmon.monitor
import rlmon.trl.base
from rlmon.metrics.step import Families
from rlmon.runlog import RunLogWriter
from rlmon.trl import RLMon, RLMonConfig


def broken(*args: Any, **kwargs: Any) -> Any:
    raise ValueError("broken on purpose")


def out_of_memory(*args: Any, **kwargs: Any) -> Any:
    raise torch.OutOfMemoryError("broken on purpose")


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "observe": (Families, "add_rows", broken),
    "vector": (rlmon.exchange.Exchange, "fill", broken),
    "base": (rlmon.trl.base, "exact_kl", out_of_memory),
    "disk": (RunLogWriter, "_write_rows", lambda *args, **kwargs: False),
}


def by_rank(completions: Any, **_: Any) -> list[float]:
    """Each rank scores its own rows: rank 0 sees nothing but 0, rank 1 nothing but 1."""
    return [float(os.environ["RANK"])] * len(completions)


def one_run(out: Path, kind: str, rloo: bool, lora: bool) -> None:
    rank = int(os.environ["RANK"])
    counted = tiny.counting_reward(out / f"truth-{rank}.jsonl")
    trained = tiny.trainer(
        out / "run",
        rloo=rloo,
        lora=lora,
        reward=[counted, by_rank] if kind == "success" else counted,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=4,
        num_generations_eval=4,
        # Three groups of four on two ranks of six rows: the middle one straddles them.
        per_device_train_batch_size=6 if kind == "straddle" else 8,
    )
    monitor = None
    if kind != "stock":
        monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=2, rlmon_console=False))
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1 and kind in FAULTS:
            patch.setattr(*FAULTS[kind])
        trained.train()
    digest = hashlib.blake2b()
    for name, tensor in sorted(tiny.weights(trained).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    seen: dict[str, Any] = {"weights": digest.hexdigest(), "rank": rank}
    if monitor is not None:
        record = monitor.monitor.last_record
        seen |= {
            "metrics": record.metrics,
            "completions": record.completions,
            "blocks": len(record.blocks),
            "faults": monitor.monitor.faults.totals,
            "success": monitor.monitor.shared_state()["success"],
            "trl_entropy": [row["entropy"] for row in trained.state.log_history if "entropy" in row],
            "entropy": [row["rlmon/entropy/mean"] for row in trained.state.log_history if "entropy" in row],
        }
    (out / f"rank-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for cell in sys.argv[2:]:
        kind, *flags = cell.split("-")
        one_run(Path(sys.argv[1]) / cell, kind, "rloo" in flags, "lora" in flags)
