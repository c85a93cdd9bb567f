"""The demo's second act: after training the requirement changes, and training goes on with nothing to hold it.

What narrowing cost shows only now. GRPO learns from groups in which some answers are rewarded and some are not: what is
never sampled is never rewarded, however long the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmon.lab.evaluate import EVALUATION_SEED
from rlmon.lab.sampling import draws
from rlmon.lab.task import is_correct

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WANTED = "json"
"""The format that the demo asks for."""
WANTED_TOKENS = 8
"""JSON needs 7 with its end token. What is longer is not rewarded anyway, and would cost a third of the CPU time."""
MOST_STEPS = 80
"""About twice what the base needs."""
LINE = 0.9
"""Mean reward that counts as learned."""
WINDOW_STEPS = 5
"""Steps over which that mean is taken."""
BASE = "base"
PROMPTS = 512
SAMPLES_PER_PROMPT = 8
SEQUENCES_PER_BATCH = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Continued:
    """How training went on after the requirement had changed."""

    mixed_groups: int
    """Groups in which some answers were rewarded and some were not."""
    weights_moved: float
    """Length of the change of all weights over their length; 0.0 where no group was mixed."""
    steps_to_90: int | None
    """First step at which the mean reward of ``WINDOW_STEPS`` steps is at least ``LINE``; ``None``: never."""
    rewards: list[float]
    """Mean reward of each step, up to there or to the last step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondAct:
    """One start, and what came of it."""

    arm: str
    """The arm at whose end it starts, or ``BASE``."""
    seed: int
    wanted: str
    """The format that is asked for."""
    wanted_in_4096: int
    """Of 4,096 held-out samples at the start, right or not, those in the wanted format."""
    continued: Continued

    def row(self) -> dict[str, Any]:
        """As in ``demo.json``."""
        row: dict[str, Any] = asdict(self)
        continued: dict[str, Any] = row.pop("continued")
        return row | continued


def first_at_line(rewards: Sequence[float]) -> int | None:
    """First step whose mean reward over ``WINDOW_STEPS`` steps is at least ``LINE``; ``None`` if there is none."""
    for end in range(WINDOW_STEPS, len(rewards) + 1):
        if sum(rewards[end - WINDOW_STEPS : end]) >= LINE * WINDOW_STEPS:
            return end
    return None


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def second_acts(
    ends: Mapping[tuple[str, int], Mapping[str, torch.Tensor]],
    fresh: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    prompts: Sequence[str],
    parse: Callable[[str], str],
    out: Path,
    training: Mapping[str, Any],
) -> Iterator[SecondAct]:
    """On each seed from the base and from each of ``ends``, by arm and seed: how training goes on.

    ``fresh()`` gives the base; ``prompts`` are held out; ``training`` is how the arms were trained.
    """
    settings = {**training, "max_steps": MOST_STEPS, "max_completion_length": WANTED_TOKENS}
    of_base = wanted_in(fresh(), tokenizer, prompts, parse, WANTED)
    for seed in dict.fromkeys(seed for _, seed in ends):
        for arm in (BASE, *(arm for arm, of in ends if of == seed)):
            # Never a copy of the trained model: that one still computes with the weights of the original.
            model = fresh()
            if arm != BASE:
                model.load_state_dict(ends[arm, seed])
            yield SecondAct(
                arm=arm,
                seed=seed,
                wanted=WANTED,
                wanted_in_4096=of_base if arm == BASE else wanted_in(model, tokenizer, prompts, parse, WANTED),
                continued=go_on(model, tokenizer, dataset, parse, WANTED, out=out, seed=seed, settings=settings),
            )


def wanted_in(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    parse: Callable[[str], str],
    wanted: str,
) -> int:
    """How many of ``SAMPLES_PER_PROMPT`` completions of each prompt are in the format ``wanted``, right or not."""
    was_training = model.training
    model.eval()
    found = sum(
        parse(text) == wanted
        for drawn in draws(
            model, tokenizer, prompts, max_new_tokens=WANTED_TOKENS, sequences_per_batch=SEQUENCES_PER_BATCH,
            seed=EVALUATION_SEED, copies=SAMPLES_PER_PROMPT,
        )
        for text in drawn.texts
    )  # fmt: skip
    model.train(was_training)
    return found


def go_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    parse: Callable[[str], str],
    wanted: str,
    *,
    out: Path,
    seed: int,
    settings: Mapping[str, Any],
) -> Continued:
    """GRPO with ``beta`` 0, rewarded only where the answer is right *and* in the format ``wanted``, until the reward is
    at ``LINE`` or for ``settings["max_steps"]``. ``settings`` are those of ``GRPOConfig``."""
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rewards: list[float] = []
    mixed_groups = 0
    group = settings["num_generations"]

    def reward(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], **_: object) -> list[float]:
        nonlocal mixed_groups
        found = [
            float(is_correct(text, truth) and parse(text) == wanted)
            for text, truth in zip(completions, answer, strict=True)
        ]
        rewards.append(sum(found) / len(found))
        mixed_groups += sum(0 < sum(found[at : at + group]) < group for at in range(0, len(found), group))
        return found

    class StopAtLine(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= first_at_line(rewards) is not None

    before = weights_of(model)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(out), seed=seed, **{**settings, "beta": 0.0}),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StopAtLine())
    trainer.train()
    moved = _moved(before, weights_of(trainer.model))
    assert moved > 0.0 or mixed_groups == 0, "Groups were mixed and no weight moved: other weights were sampled."
    return Continued(
        mixed_groups=mixed_groups, weights_moved=moved, steps_to_90=first_at_line(rewards), rewards=rewards
    )


def _moved(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    change = sum(float((after[name] - tensor).square().sum()) for name, tensor in before.items())
    length = sum(float(tensor.square().sum()) for tensor in before.values())
    return float((change / length) ** 0.5)
