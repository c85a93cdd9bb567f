"""The monitor's share of a step on a real model: SmolLM2-135M with LoRA on a CPU, as `configs/smollm2.yaml` has it.

    make smollm2 SMOLLM2_ARGS='--max_steps 1'     (once: fetches the model)
    python benchmarks/bench_smollm2.py [--steps 20] [--every 5]

Processor time over all threads. Limits: the monitor's own timers at most 2 % of the step without the base forward;
with it, at most one forward of the policy more on each measuring step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "trainers"))
LIMIT = 0.02


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="measure KL to the base every this many steps")
    options = parser.parse_args(arguments)
    if not (ROOT / ".cache" / "smollm2-135m-instruct").exists():
        print("The model is not here yet. Type: make smollm2 SMOLLM2_ARGS='--max_steps 1'", file=sys.stderr)
        return 2
    os.chdir(ROOT)

    import train_grpo
    from trl import GRPOTrainer

    import rlmon

    step_seconds: list[float] = []
    forward_seconds: list[float] = []

    def timed(name: str, into: list[float]) -> None:
        original = getattr(GRPOTrainer, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = original(*args, **kwargs)
            into.append(time.process_time() - began)
            return result

        setattr(GRPOTrainer, name, wrapper)

    timed("training_step", step_seconds)
    timed("_get_per_token_logps_and_entropies", forward_seconds)
    with tempfile.TemporaryDirectory() as out:
        config = ["--config", "configs/smollm2.yaml", "--output_dir", out, "--max_steps", str(options.steps)]
        code = train_grpo.main([*config, "--rlmon_base_kl_every", str(options.every)])
        if code != 0:
            return code
        records = rlmon.open_run(Path(out) / "rlmon").step_records()
    own = [record.overhead_seconds or 0.0 for record in records]
    base = [record.base_forward_seconds for record in records if record.base_forward_seconds is not None]
    share = sum(own) / sum(step_seconds)
    print(f"steps {len(records)}, completions a step {records[0].completions}")
    print(f"step (median)                     {statistics.median(step_seconds):8.3f} s")
    print(f"forward of the policy (median)    {statistics.median(forward_seconds):8.3f} s")
    print(f"monitor without base (median)     {statistics.median(own) * 1e3:8.1f} ms")
    print(f"monitor without base, whole run   {share:8.2%} of the steps (limit {LIMIT:.0%})")
    print(f"base forward and exact KL, each   {statistics.median(base):8.3f} s, on {len(base)} of {len(records)} steps")
    forwards = statistics.median(base) / statistics.median(forward_seconds)
    print(f"that is                           {forwards:8.2f} forwards")
    print(f"faults                            {sum(sum(r.faults.values()) for r in records):8d}")
    return int(share > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
