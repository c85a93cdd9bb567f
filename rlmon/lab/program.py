"""The body of the programs in ``trainers/``: TRL's own script with the monitor in it.

Less the reward models and dataset mixtures of TRL's, plus ``RLMonConfig`` beside TRL's dataclasses: every setting of
TRL and of rlmon may stand in one YAML file or on the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmon.config import RLMonConfig
from rlmon.errors import RLMonError
from rlmon.lab.workload import WorkloadArguments, load_workload


@dataclass(frozen=True)
class Program:
    """A program that trains with one trainer."""

    trainer: type[Any]
    """One of ``rlmon.trl``'s monitored trainers."""
    config: type[Any]
    """TRL's dataclass of its settings."""

    def parser(self) -> TrlParser:
        return TrlParser((WorkloadArguments, self.config, ModelConfig, RLMonConfig))

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Train as ``argv`` says; 0 when done, 2 when refused before the first step."""
        try:
            workload_arguments, args, model_arguments, config = self.parser().parse_args_and_config(argv)
            workload = load_workload(workload_arguments, evaluate=args.eval_strategy != "no")
            args.model_init_kwargs = {
                "revision": model_arguments.model_revision,
                "attn_implementation": model_arguments.attn_implementation,
                "dtype": model_arguments.dtype,
                **(args.model_init_kwargs or {}),
            }
            trainer = self.trainer(
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
