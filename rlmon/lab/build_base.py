"""Builds the tiny base model of the demo: ``python -m rlmon.lab.build_base``.

A Llama of 0.12M parameters learns the arithmetic task in six formats by plain supervised training. The result
is shipped with the package (``rlmon/lab/bases/arithmetic``, about 0.25 MB in bf16), so the demo never builds it.

Every random number comes from generators seeded here and training uses one thread, so two builds on one machine
with one torch version give the same SHA-256: ``python -m rlmon.lab.build_base --check`` builds twice and compares
(with each other, not with the shipped file: another processor or torch version may round differently).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlmon.lab.task import FORMATS, Question, split_questions, write_answer

BASE_DIR = Path(__file__).parent / "bases" / "arithmetic"
"""The shipped base."""

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides what the base is."""

    seed: int = 0
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 6e-3
    mix: tuple[float, ...] = (0.40, 0.20, 0.14, 0.12, 0.10, 0.04)
    """Share of each of ``FORMATS`` in the training text."""
    label_noise: tuple[float, ...] = (0.13, 0.13, 0.08, 0.13, 0.13, 0.13)
    """Share of wrong answers in each of ``FORMATS``: leaves room for RL to improve."""
    samples: int = 40_000
    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 192
    vocabulary: int = 256
    """At most this many tokens."""


def training_pairs(recipe: Recipe) -> list[tuple[Question, str]]:
    """(question, answer text) drawn with replacement from the training questions, never from the held-out ones.

    A wrong answer is off by 1 to 3; where the format shows no answer (Python), an operand is.
    """
    draw = random.Random(recipe.seed)
    train, _ = split_questions()
    pairs: list[tuple[Question, str]] = []
    for style in draw.choices(FORMATS, weights=recipe.mix, k=recipe.samples):
        question = draw.choice(train)
        a, answer = question.a, question.answer
        if draw.random() < recipe.label_noise[FORMATS.index(style)]:
            off = draw.choice((-3, -2, -1, 1, 2, 3))
            answer = max(0, answer + off)
            if style == "python":
                a = max(0, a + off)
        pairs.append((question, write_answer(question, style, a=a, answer=answer)))
    return pairs


def build_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE whose numbers are single tokens, with ``<pad>`` and ``<eos>`` distinct."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<pad>", "<eos>"], show_progress=False)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def build(out: Path, recipe: Recipe, *, progress: bool = False) -> str:
    """Trains the base, saves it under ``out`` and returns the SHA-256 of its weights file.

    Costs about 70 CPU-seconds. Sets torch to one thread.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    pairs = training_pairs(recipe)
    tokenizer = build_tokenizer([text for q, answer in pairs for text in (q.prompt, answer)], recipe.vocabulary)
    pad, eos = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)

    prompts = tokenizer([q.prompt for q, _ in pairs])["input_ids"]
    answers = tokenizer([answer for _, answer in pairs])["input_ids"]
    length = max(len(p) + len(a) + 1 for p, a in zip(prompts, answers, strict=True))
    ids_NT = torch.full((len(pairs), length), pad)
    labels_NT = torch.full((len(pairs), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = [*prompt, *answer, eos]
        ids_NT[row, : len(tokens)] = torch.tensor(tokens)
        labels_NT[row, len(prompt) : len(tokens)] = torch.tensor([*answer, eos])

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    order = torch.Generator().manual_seed(recipe.seed)
    model.train()
    for step in range(recipe.steps):
        rows = torch.randint(len(pairs), (recipe.batch_size,), generator=order)
        width = int((ids_NT[rows] != pad).sum(1).max())
        # Right padding and a causal mask: no attention mask is needed, pads are only seen by pads.
        logits = model(input_ids=ids_NT[rows, :width]).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels_NT[rows, 1:width].flatten(), ignore_index=-100
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress and (step + 1) % 200 == 0:
            print(f"step {step + 1:5d}  loss {loss.item():.4f}", file=sys.stderr)

    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=eos, do_sample=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return sha256(out / WEIGHTS)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlmon.lab.build_base", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=BASE_DIR, help="where to write (default: the shipped base)")
    parser.add_argument("--check", action="store_true", help="build twice into scratch folders and compare SHA-256")
    arguments = parser.parse_args(argv)
    recipe = Recipe()
    if arguments.check:
        with tempfile.TemporaryDirectory() as scratch:
            first, second = (build(Path(scratch) / name, recipe, progress=True) for name in ("first", "second"))
        shipped = sha256(BASE_DIR / WEIGHTS) if (BASE_DIR / WEIGHTS).exists() else "none"
        print(f"first build   {first}\nsecond build  {second}\nshipped       {shipped}")
        print("identical" if first == second else "DIFFERENT")
        return 0 if first == second else 1

    import torch
    import transformers

    started = time.process_time()
    digest = build(arguments.out, recipe, progress=True)
    facts = {
        "sha256": digest,
        "recipe": asdict(recipe),
        "formats": FORMATS,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": 1,
        "cpu_seconds": round(time.process_time() - started, 1),
        "rebuild": "python -m rlmon.lab.build_base --check",
    }
    (arguments.out / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{digest}  {arguments.out / WEIGHTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
