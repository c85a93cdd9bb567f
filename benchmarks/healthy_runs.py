"""False alarms on real healthy runs: the demo's task with ``learning_rate=0``, and with a KL penalty.

    python benchmarks/healthy_runs.py [--still 20] [--kl 10] [--out benchmarks/healthy_runs.json]

Every run is a real TRL GRPO run of the demo's length, watched as a user would. A run with a learning rate of 0 cannot
narrow; one held by KL moves, gains accuracy, and keeps its formats. None of them may FAIL, and a note (solved prompts)
leaves the verdict a pass. Finished runs are kept in the output file, and a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from rlmon.detectors.catalog import VERSION
from rlmon.detectors.roster import Roster
from rlmon.lab.demo import ARMS, STEPS, TRAINING
from rlmon.records import SEVERITIES, verdict

FIRST_SEED = 100
"""Apart from the demo's own seeds: its settings were chosen by looking at those."""


def run(kind: str, seed: int) -> dict[str, Any]:
    """One watched run; its findings as ``[step, severity, detector]`` and how it ended."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlmon.lab.bases import BASE_DIR
    from rlmon.lab.task import reward_correct, split_questions
    from rlmon.trl import RLMon, RLMonConfig

    torch.set_num_threads(1)
    train, _ = split_questions()
    dataset = Dataset.from_dict(
        {
            "prompt": [question.prompt for question in train],
            "answer": [question.answer for question in train],
            "task": ["arithmetic"] * len(train),
        }
    )
    changed = {"learning_rate": 0.0, "beta": 0.0} if kind == "still" else {"beta": ARMS["kl"].beta}
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32),
            reward_funcs=reward_correct,
            args=GRPOConfig(output_dir=folder, seed=seed, **(dict(TRAINING) | changed)),
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(BASE_DIR),
        )
        trainer.remove_callback(PrinterCallback)
        monitor = RLMon(trainer, RLMonConfig(rlmon_console=False, rlmon_base_kl_every=5))
        trainer.train()
        watched = monitor.monitor
        assert watched is not None
        assert watched.last_record is not None
        assert watched.last_record.step == STEPS
        return {
            "kind": kind,
            "seed": seed,
            "findings": [[finding.step, finding.severity, finding.detector] for finding in watched.findings],
            "effective_formats": watched.last_record.metrics["rlmon/format/effective"],
            "reward": watched.last_record.metrics["rlmon/health/reward_mean"],
            "faults": sum(watched.faults.totals.values()),
        }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--still", type=int, default=20, help="runs with learning_rate=0")
    parser.add_argument("--kl", type=int, default=10, help="runs with a KL penalty")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("healthy_runs.json"))
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("trl").setLevel(logging.ERROR)
    wanted = [("still", FIRST_SEED + i) for i in range(options.still)]
    wanted += [("kl", FIRST_SEED + i) for i in range(options.kl)]
    settings = {
        **TRAINING,
        "beta_kl": ARMS["kl"].beta,
        "detectors_version": VERSION,
        "lines": Roster().defaults["lines"],
    }
    runs: list[dict[str, Any]] = []
    if options.out.exists():
        kept = json.loads(options.out.read_text())
        if kept["settings"] == settings:
            runs = [r for r in kept["runs"] if (r["kind"], r["seed"]) in wanted]
    done = {(r["kind"], r["seed"]) for r in runs}
    for number, (kind, seed) in enumerate(wanted):
        if (kind, seed) not in done:
            print(f"[{number + 1}/{len(wanted)}] {kind} seed {seed}", file=sys.stderr)
            runs.append(run(kind, seed))
            options.out.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")
    failed = False
    for kind in ("still", "kl"):
        of_kind = [r for r in runs if r["kind"] == kind]
        verdicts = Counter(verdict(severity for _, severity, _ in r["findings"]) for r in of_kind)
        print(f"{kind}: {len(of_kind)} runs of {STEPS} steps, verdicts: {dict(verdicts)}")
        for severity in reversed(SEVERITIES):
            hit = Counter(d for r in of_kind for d in {f[2] for f in r["findings"] if f[1] == severity})
            failed |= severity == "fail" and bool(hit)
            print(f"{kind}: runs with a {severity.upper()}: {dict(hit) or 'none'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
