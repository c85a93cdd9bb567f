"""PPO with the monitor built in, on GRPO's engine: for any TRL from 1.8 on.

    python trainers/train_ppo.py --config configs/ppo.yaml
    python trainers/train_ppo.py --config configs/ppo.yaml --kl_coef 0.1 --rlmon_dir out/with-kl

Reward functions, prompts, adapters and generation are those of TRL's GRPO; a critic takes the place of the group's
mean. Every setting of TRL's ``GRPOConfig``, of ``PPOConfig`` and of rlmon may stand in one YAML file or on the command
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmon.errors import RLMonError
from rlmon.lab.workload import WorkloadArguments, load_workload
from rlmon.trl import MonitoredPPOTrainer, PPOConfig, RLMonConfig


def parser() -> TrlParser:
    return TrlParser((WorkloadArguments, PPOConfig, ModelConfig, RLMonConfig))


def main(argv: Sequence[str] | None = None) -> int:
    """Train as ``argv`` says; 0 when done, 2 when refused before the first step."""
    try:
        workload_arguments, args, model_arguments, config = parser().parse_args_and_config(argv)
        workload = load_workload(workload_arguments, evaluate=args.eval_strategy != "no")
        args.model_init_kwargs = {
            "revision": model_arguments.model_revision,
            "attn_implementation": model_arguments.attn_implementation,
            "dtype": model_arguments.dtype,
            **(args.model_init_kwargs or {}),
        }
        trainer = MonitoredPPOTrainer(
            model=model_arguments.model_name_or_path,
            reward_funcs=workload.reward_funcs,
            args=args,
            train_dataset=workload.train,
            eval_dataset=workload.evaluation,
            quantization_config=get_quantization_config(model_arguments),
            peft_config=get_peft_config(model_arguments),
            rlmon=config,
        )
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except RLMonError as error:
        print(f"rlmon: {error}", file=sys.stderr)
        return 2
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"model in {args.output_dir}, run log in {trainer.rlmon.log_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
