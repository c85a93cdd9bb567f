"""What PPO's critic adds to a step of a real model: SmolLM2-135M with LoRA on a CPU, from `configs/smollm2_ppo.yaml`.

    make smollm2 SMOLLM2_ARGS='--max_steps 1'     (once: fetches the model)
    python benchmarks/bench_critic.py [--steps 6] [--rounds 3] [--settings epochs "one pass"]

GRPO and PPO train in turns with a policy learning rate of 0, so that both sample the same completions and a step of one
can be set against the same step of the other; the value head learns. Processor time over all threads.

Two settings. `epochs`: two passes over each generation in four batches, for which GRPO too computes the logprobs of the
policy that sampled: the difference is the value head, on the hidden states of forwards that run anyway. `one pass`: one
batch and one step a generation, where GRPO needs no such forward, so PPO pays one without gradients for its values.
Limit: 5 % for the value head.
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
LIMIT = 0.05
SETTINGS: dict[str, dict[str, Any]] = {
    "epochs": {"num_iterations": 2},
    "one pass": {"num_iterations": 1, "steps_per_generation": 1, "per_device_train_batch_size": 16},
}


def steps_of(kind: str, overrides: dict[str, Any], steps: int, critic: str) -> list[float]:
    """CPU-seconds of each optimizer step."""
    import yaml
    from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config

    from rlmon.lab.workload import WorkloadArguments, load_workload
    from rlmon.trl import PPOConfig, PPOTrainer

    settings = yaml.safe_load((ROOT / "configs" / "smollm2_ppo.yaml").read_text())
    with tempfile.TemporaryDirectory() as out:
        given = settings | overrides | {"output_dir": out, "learning_rate": 0.0, "max_steps": steps, "kl_coef": 0.0}
        given |= {"critic": critic}
        config: type[Any] = PPOConfig
        if kind == "grpo":
            config = GRPOConfig
            own = set(PPOConfig.__dataclass_fields__) - set(GRPOConfig.__dataclass_fields__)
            given = {name: value for name, value in given.items() if name not in own}
        given = {name: value for name, value in given.items() if not name.startswith("rlmon_")}
        parser = TrlParser((WorkloadArguments, config, ModelConfig))
        workload_arguments, args, model_arguments = parser.parse_dict(given)
        workload = load_workload(workload_arguments, evaluate=False)
        args.model_init_kwargs = {"dtype": model_arguments.dtype}
        args.disable_tqdm = True
        seconds: list[float] = []

        class Timed(GRPOTrainer if kind == "grpo" else PPOTrainer):  # type: ignore[misc]
            def training_step(self, *arguments: Any, **kwargs: Any) -> Any:
                began = time.process_time()
                result = super().training_step(*arguments, **kwargs)
                seconds.append(time.process_time() - began)
                return result

        trainer = Timed(
            model=model_arguments.model_name_or_path,
            reward_funcs=workload.reward_funcs,
            args=args,
            train_dataset=workload.train,
            peft_config=get_peft_config(model_arguments),
        )
        trainer.train()
    return seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3, help="how often the two take turns")
    parser.add_argument("--critic", default="shared_detached")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["epochs"])
    options = parser.parse_args(arguments)
    if not (ROOT / ".cache" / "smollm2-135m-instruct").exists():
        print("The model is not here yet. Type: make smollm2 SMOLLM2_ARGS='--max_steps 1'", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    shares = {}
    for name in options.settings:
        overrides = SETTINGS[name]
        found: dict[str, list[list[float]]] = {"grpo": [], "ppo": []}
        for turn in range(options.rounds):
            for kind in ("grpo", "ppo") if turn % 2 == 0 else ("ppo", "grpo"):
                found[kind].append(steps_of(kind, overrides, options.steps, options.critic))
        # The first step of each run also warms up.
        pairs = [
            (g, p) for grpo, ppo in zip(found["grpo"], found["ppo"], strict=True)
            for g, p in zip(grpo[1:], ppo[1:], strict=True)
        ]  # fmt: skip
        ratios = [p / g - 1.0 for g, p in pairs]
        shares[name] = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        grpo_s, ppo_s = (statistics.fmean(side) for side in zip(*pairs, strict=True))
        print(
            f"{name:10} GRPO {grpo_s:.2f} s a step, PPO {ppo_s:.2f} s; PPO over GRPO by {shares[name]:+.1%} "
            f"(median of {len(pairs)} steps, quartiles {low:+.1%}, {high:+.1%})",
            flush=True,
        )
    head = shares.get("epochs")
    if head is None:
        return 0
    print(f"value head, {options.critic}: {head:+.1%} of a step (limit {LIMIT:.0%})")
    return int(head > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
