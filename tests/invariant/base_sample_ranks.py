"""One rank of two-process runs that sample their base: ``base_sample_ranks.py OUT CELL...``; writes JSON per rank.

A cell is a kind and flags (``rloo``). Kinds: ``stock`` (no monitor), ``sampled``, ``straddle`` (groups lie across
ranks), ``rules`` (with a policy that compares the run with its base), or a fault on rank 1 alone: ``reward`` (a reward
function raises while the base is scored), ``generate`` (generation does), ``measure`` (a metric does), ``vector`` (its
share of the collective cannot be made).
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
from rlmon.detectors import state_to_json
from rlmon.monitor import Monitor
from rlmon.trl import RLMon, RLMonConfig

SAMPLE = 64
APART = {"when": "always", "do": {"action": "hold", "opening": 1.0}}
POLICY = {"rules": {"apart": APART, "formats": {"when": "always", "do": "mode_marginal"}}}


def broken(*args: Any, **kwargs: Any) -> Any:
    raise ValueError("broken on purpose")


def broken_once(original: Any, at: int) -> Any:
    """``original``, which raises at its ``at``-th call."""
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise ValueError("broken on purpose")
        return original(*args, **kwargs)

    return call


def one_run(out: Path, kind: str, rloo: bool) -> None:
    rank = int(os.environ["RANK"])
    fails = rank == 1
    reward: Any = tiny.counting_reward(out / f"truth-{rank}.jsonl")
    trained = tiny.trainer(
        out / "run",
        rloo=rloo,
        reward=broken_once(reward, 3) if kind == "reward" and fails else reward,
        # Three groups of four on two ranks of six rows: the middle one straddles them.
        per_device_train_batch_size=6 if kind == "straddle" else 8,
    )
    watcher = None
    if kind != "stock":
        policy = POLICY if kind == "rules" else None
        watcher = RLMon(trained, RLMonConfig(rlmon_base_sample=SAMPLE, rlmon_console=False, rlmon_policy=policy))
    with pytest.MonkeyPatch.context() as patch:
        if fails and kind == "generate":
            patch.setattr(trained.model, "generate", broken_once(trained.model.generate, 2))
        if fails and kind == "measure":
            patch.setattr(Monitor, "_measured_of_base", broken)
        if fails and kind == "vector":
            patch.setattr(rlmon.exchange.Exchange, "fill", broken_once(rlmon.exchange.Exchange.fill, 2))
        trained.train()
    digest = hashlib.blake2b()
    for name, tensor in sorted(tiny.weights(trained).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    seen: dict[str, Any] = {"weights": digest.hexdigest(), "rank": rank}
    if watcher is not None and watcher.monitor is not None:
        monitor = watcher.monitor
        record = monitor.last_record
        assert record is not None
        seen |= {
            "metrics": record.metrics,
            "shed": record.shed_rows,
            "detectors": state_to_json(monitor.detector_state),
            "faults": monitor.faults.totals,
            "rules": None if monitor.controller is None else monitor.controller.state()["engine"],
            "off": None if monitor.controller is None else monitor.controller.off,
        }
    (out / f"rank-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for cell in sys.argv[2:]:
        kind, *flags = cell.split("-")
        one_run(Path(sys.argv[1]) / cell, kind, "rloo" in flags)
