"""Builds the tiny base models of the laboratory: ``python -m studies.build_base --base NAME``.

A Llama of 0.12M parameters learns the arithmetic task in six or seven formats by plain supervised training. The
results are shipped with the package (``rlmon/lab/bases/NAME``, about 0.25 MB in bf16), so nothing else builds them.

- ``arithmetic``: the base of the demo. Python is right a little more often than the other five formats.
- ``seven``: seven formats, of which one (Python) is nearly always right and six are wrong in a third of the answers.
- ``by-prompt``: six formats with nearly the same mix everywhere, but which one is nearly always right depends on the
  item. A tenth of the answers lean to it.

Every random number comes from generators seeded here and training uses one thread, so two builds on one machine
with one torch version give the same SHA-256: ``python -m studies.build_base --check`` builds twice and compares
(with each other, not with the shipped file: another processor or torch version may round differently).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlmon.lab.bases import WEIGHTS, base_dir, sha256
from rlmon.lab.task import FORMATS, PROMPT_CLASSES, Question, split_questions
from studies.texts import BY_PROMPT_FORMATS, OPERAND_FORMATS, SEVEN_FORMATS, write_answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides what the base is."""

    seed: int = 0
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 6e-3
    mix: tuple[float, ...] = (0.40, 0.20, 0.14, 0.12, 0.10, 0.04)
    """Share of each of ``formats`` in the training text."""
    label_noise: tuple[float, ...] = (0.13, 0.13, 0.08, 0.13, 0.13, 0.13)
    """Share of wrong answers in each of ``formats``: leaves room for RL to improve."""
    samples: int = 40_000
    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 192
    vocabulary: int = 256
    """At most this many tokens."""
    formats: tuple[str, ...] = FORMATS
    sure_formats: tuple[str, ...] = ()
    """For each of ``PROMPT_CLASSES`` the format that is right there whatever ``label_noise`` says; none: no class."""
    lean: float = 0.0
    """This share of the answers is in the sure format of their prompt's class whatever ``mix`` says: without any lean
    the model does not look at the prompt when it picks a format, and RL on this scale does not teach it to."""
    wrong_operands: bool = False
    """A wrong answer is the right sum of a wrong operand, where the format shows operands. That a format is sure in one
    class of prompts only can then be learned while copying; a sum is too late for a model this small."""

    early_share: float = 0.0
    """This share of the samples, and of the steps, comes first, in as many stages as there are ``sure_formats``. In
    stage k the first k of them are wrong with ``early_noise`` outside their class, all else is right. 30 % of
    the samples are in the k-th, and 30 % in one of the first k in its own class. Learned all at once, which format is
    sure in which class is a pure interaction, and a model this small never finds it."""
    early_noise: float = 0.0

    def noise(self, question: Question, style: str, stage: int | None = None) -> float:
        """Share of wrong answers to ``question`` in ``style``, in an early ``stage`` or (``None``) after them."""
        if self.sure_formats and self.sure_formats[question.prompt_class] == style:
            return 0.0
        if stage is not None:
            return self.early_noise if style in self.sure_formats[: stage + 1] else 0.0
        return self.label_noise[self.formats.index(style)]

    def stage(self, index: int, length: int) -> tuple[int, int, int | None]:
        """(first, end, stage) of the stretch that holds ``index``, of ``length`` samples or steps."""
        early, stages = round(self.early_share * length), len(self.sure_formats)
        if index >= early:
            return early, length, None
        stage = index * stages // early
        return -(-stage * early // stages), -(-(stage + 1) * early // stages), stage


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "arithmetic": Recipe(),
        "seven": Recipe(
            formats=SEVEN_FORMATS,
            mix=(0.36, 0.20, 0.12, 0.12, 0.08, 0.055, 0.065),
            label_noise=(0.35, 0.35, 0.0, 0.35, 0.35, 0.35, 0.35),
        ),
        "by-prompt": Recipe(
            formats=BY_PROMPT_FORMATS,
            mix=(0.24, 0.17, 0.17, 0.10, 0.16, 0.16),
            label_noise=(0.30,) * 6,
            sure_formats=("python", "fenced", "sum", "dollars"),
            lean=0.1,
            wrong_operands=True,
            early_share=0.6,
            early_noise=0.9,
            steps=2400,
            samples=80_000,
        ),
    }
)
"""The shipped bases by name."""


def training_pairs(recipe: Recipe) -> list[tuple[Question, str]]:
    """(question, answer text) drawn with replacement from the training questions, never from the held-out ones.

    A wrong answer is off by 1 to 3; where the format shows no answer (Python), an operand is.
    """
    draw = random.Random(recipe.seed)
    train, _ = split_questions()
    by_class = [[question for question in train if question.item in items] for items in PROMPT_CLASSES]
    pairs: list[tuple[Question, str]] = []
    for index, style in enumerate(draw.choices(recipe.formats, weights=recipe.mix, k=recipe.samples)):
        stage = recipe.stage(index, recipe.samples)[2]
        question = draw.choice(train)
        luck = 1.0 if stage is None else draw.random()
        if stage is not None and luck < 0.3:
            style = recipe.sure_formats[stage]
        elif stage is not None and luck < 0.6:
            chosen = draw.randrange(stage + 1)
            style, question = recipe.sure_formats[chosen], draw.choice(by_class[chosen])
        elif recipe.lean and stage is None and draw.random() < recipe.lean:
            style = recipe.sure_formats[question.prompt_class]
        a, answer = question.a, question.answer
        if draw.random() < recipe.noise(question, style, stage):
            off = draw.choice((-3, -2, -1, 1, 2, 3))
            answer = max(0, answer + off)
            if style == "python" or (recipe.wrong_operands and style in OPERAND_FORMATS):
                a = max(0, a + off)
                if recipe.wrong_operands:
                    answer = a + question.b
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
    stretches = {
        stage: (first, end)
        for first, end, stage in (recipe.stage(index, recipe.samples) for index in range(recipe.samples))
    }
    model.train()
    for step in range(recipe.steps):
        first, end = stretches[recipe.stage(step, recipe.steps)[2]]
        rows = torch.randint(first, end, (recipe.batch_size,), generator=order)
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.build_base", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", choices=list(RECIPES), default="arithmetic", help="which base (default: arithmetic)")
    parser.add_argument("--out", type=Path, default=None, help="where to write (default: the shipped base)")
    parser.add_argument("--check", action="store_true", help="build twice into scratch folders and compare SHA-256")
    arguments = parser.parse_args(argv)
    recipe = RECIPES[arguments.base]
    shipped_dir = base_dir(arguments.base)
    if arguments.check:
        with tempfile.TemporaryDirectory() as scratch:
            first, second = (build(Path(scratch) / name, recipe, progress=True) for name in ("first", "second"))
        shipped = sha256(shipped_dir / WEIGHTS) if (shipped_dir / WEIGHTS).exists() else "none"
        print(f"first build   {first}\nsecond build  {second}\nshipped       {shipped}")
        print("identical" if first == second else "DIFFERENT")
        return 0 if first == second else 1

    import torch
    import transformers

    out = arguments.out or shipped_dir
    started = time.process_time()
    digest = build(out, recipe, progress=True)
    facts = {
        "sha256": digest,
        "recipe": asdict(recipe),
        "formats": recipe.formats,
        "prompt_classes": PROMPT_CLASSES if recipe.sure_formats else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": 1,
        "cpu_seconds": round(time.process_time() - started, 1),
        "rebuild": f"python -m studies.build_base --base {arguments.base} --check",
    }
    (out / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{digest}  {out / WEIGHTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
