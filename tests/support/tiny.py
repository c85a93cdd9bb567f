"""A real TRL run that takes a second: a 64-word model made from scratch, real trainers, real rewards.

Used by the tests under invariant/ and faults/, and run as a script by those that need processes of their own.
"""

from __future__ import annotations

import gc
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

MARKS = ["<pad>", "<eos>", "<unk>", "+", "=", ".", "\n", "(", ")", "{", "}", '"', ":"]
NAMED = ["the", "sum", "is", "print", "answer", "add", "so", "we", "get", "first", "then", "total", "apples", "has"]
OTHERS = ["and", "more", "how", "many", "yes", "no", "step"]
WORDS = [*MARKS[:3], *[str(n) for n in range(20)], *MARKS[3:], *NAMED, *OTHERS]
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    made.chat_template = CHAT
    return made


def model(seed: int = 0, dropout: float = 0.0) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(WORDS),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=128,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=None,
                attention_dropout=dropout,
            )
        )


def saved_model(folder: Path, seed: int = 0) -> LlamaForCausalLM:
    """The model with a path of its own: TRL loads its reference from there where ``beta`` is not 0."""
    path = folder / f"model-{seed}"
    if not path.exists():
        model(seed).save_pretrained(path)
    return LlamaForCausalLM.from_pretrained(path)


def dataset(rows: int = 12, conversational: bool = False) -> Dataset:
    prompts: list[Any] = [f"{i % 10} + {i // 2 % 10} = how many" for i in range(rows)]
    if conversational:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return Dataset.from_dict({"prompt": prompts, "target": [i % 10 + i // 2 % 10 for i in range(rows)]})


def text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def has_digit(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 for completions that begin with a number: about a third of them at the start."""
    return [float(text(c).strip()[:1].isdigit()) for c in completions]


def counting_reward(path: Path) -> Callable[..., list[float]]:
    """A reward that appends every completion it scores to a file: the independent truth of what was sampled."""

    def counted(prompts: Sequence[Any], completions: Sequence[Any], trainer_state: Any, **_: Any) -> list[float]:
        with open(path, "a", encoding="utf-8") as file:
            for prompt, completion in zip(prompts, completions, strict=True):
                file.write(json.dumps([trainer_state.global_step, text(prompt), text(completion)]) + "\n")
        return has_digit(completions)

    return counted


def settings(out: Path | str, *, rloo: bool = False, ppo: bool = False, **overrides: Any) -> GRPOConfig | RLOOConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 7,
        "disable_tqdm": True,
        "temperature": 1.0,
    }
    if ppo:
        from rlmon.trl import PPOConfig

        return PPOConfig(**(defaults | overrides))
    return (RLOOConfig if rloo else GRPOConfig)(**(defaults | overrides))


def trainer(
    out: Path | str,
    *,
    rloo: bool = False,
    ppo: bool = False,
    reward: Any = has_digit,
    lora: Any = False,
    callbacks: list[Any] | None = None,
    train: Any = None,
    policy: Any = None,
    cls: Any = None,
    extra: dict[str, Any] | None = None,
    **overrides: Any,
) -> Any:
    if cls is None:
        cls = RLOOTrainer if rloo else GRPOTrainer
        if ppo:
            from rlmon.trl import PPOTrainer

            cls = PPOTrainer
    if lora is True:
        from peft import LoraConfig

        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return cls(
            policy if policy is not None else saved_model(Path(out).parent),
            reward_funcs=reward,
            args=settings(out, rloo=rloo, ppo=ppo, **overrides),
            train_dataset=dataset() if train is None else train,
            processing_class=tokenizer(),
            peft_config=lora or None,
            callbacks=callbacks,
            **({"eval_dataset": dataset(4) if overrides.get("eval_strategy", "no") != "no" else None} | (extra or {})),
        )


def weights(trained: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.model.named_parameters()}


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class AtStep(TrainerCallback):
    """Calls ``act`` when step 3 begins."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            self.act()


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Every training begins with a full collection of garbage: what was imported by now is never garbage.
gc.freeze()
