"""What blends answer: accuracy, formats and wording at several A, from completions that are sampled from each.

The one part of blending that makes a model, by transformers (and PEFT), and that runs something of the user's: the
reward function. One model is in memory, whose weights are set for each A.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import rlmon.blending.writing as writing
from rlmon.blending.making import Pair, write
from rlmon.blending.matching import Piece, is_constant
from rlmon.blending.tensors import decoded
from rlmon.errors import WeightsError
from rlmon.lab.loading import as_text, load_model, load_tokenizer, loaded, quiet, require
from rlmon.lab.prompts import Prompts
from rlmon.lab.rewards import named, one_success, rewards_of
from rlmon.lab.sampling import Drawn, draws, entropies
from rlmon.metrics.families import WATCHING
from rlmon.metrics.family import RankRows, RoundRows
from rlmon.metrics.features import Featurizer
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.groups import groups_of_batch
from rlmon.metrics.prompts import prompt_identities, render_prompt
from rlmon.metrics.rows import rows_of
from rlmon.metrics.step import Families
from rlmon.metrics.success import Success
from rlmon.metrics.tokens import TokenSums, token_sums
from rlmon.printable import one_line, several
from rlmon.records import RolloutBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = (
    "rlmon/format/effective",
    "rlmon/format/effective_within",
    "rlmon/format/effective_correct",
    "rlmon/format/top_share",
    "rlmon/collision/template_within_effective",
    "rlmon/collision/template_correct_within_effective",
    "rlmon/entropy/mean",
)
"""Metrics of the catalogue that a point of a curve has."""
FORMATS = "rlmon/format/effective"
KEPT = 0.85
"""Share of the base's formats in use that counts as kept, as in the studies."""


@dataclass(frozen=True)
class Point:
    """What completions at one A show."""

    alpha: float
    completions: int
    accuracy: float | None
    """Share of successes."""
    reward: float | None
    """Mean reward."""
    metrics: Mapping[str, float | None]
    """Of the catalogue (``SHOWN``)."""
    missing: Mapping[str, str]
    """Why one of them is ``None``."""

    @property
    def score(self) -> float | None:
        """What training was for: accuracy, or where it is not known what a success is, the reward."""
        return self.reward if self.accuracy is None else self.accuracy


@dataclass(frozen=True)
class Curve:
    """Points from the base to the checkpoint."""

    points: tuple[Point, ...]
    prompts: int
    samples: int
    max_new_tokens: int
    seed: int
    success: str | None
    """What counts as a success, in words; ``None`` where that is not known."""


@dataclass
class _Sample:
    """Completions of one blend."""

    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    tokens: list[TokenSums] = field(default_factory=list)
    rewards: list[float | None] | None = None

    def add(self, batch: Drawn, entropies_BT: Any) -> None:
        self.texts += batch.texts
        completion_BT = batch.ids_BS[:, batch.prompt_tokens :]
        self.ids += [row[own].tolist() for row, own in zip(completion_BT, batch.own_BT, strict=True)]
        self.cut += (~batch.ended_B).tolist()
        self.tokens.append(token_sums(entropies_BT, None, batch.own_BT, None))


# -- sampling --------------------------------------------------------------------------------------------------------


def curve(
    pair: Pair,
    prompts: Prompts,
    reward: Callable[..., Any] | None = None,
    *,
    alphas: Sequence[float],
    samples: int = 8,
    max_new_tokens: int = 256,
    at_once: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Curve:
    """What is measured of ``samples`` completions of every prompt at temperature 1 from the blend at each of
    ``alphas``, and at 0 and 1, with which they are compared.

    The same draws for all: blends differ by their weights only. They depend on ``seed`` and ``at_once``, the
    completions that are sampled together. ``progress`` is called with prompts done and in all, ``tell`` with a line
    for each A.
    """
    require("rlmon blend --prompts", "torch", "transformers", *(("peft",) if pair.kind == "adapter" else ()))
    points = sorted({0.0, 1.0, *map(float, alphas)})
    asked = prompts.times(samples)
    done, total = 0, len(points) * len(prompts.prompts)
    with quiet():
        home = pair.home_of_tokenizer
        tokenizer = load_tokenizer(home.path, home.role)
        texts = [as_text(tokenizer, prompt) for prompt in prompts.prompts]
        found: dict[float, _Sample] = {}
        for alpha, model, ends in _models(pair, points):
            sample = found[alpha] = _Sample()
            for batch in draws(
                model,
                tokenizer,
                texts,
                max_new_tokens=max_new_tokens,
                sequences_per_batch=at_once,
                seed=seed,
                copies=samples,
                end_tokens=ends,
            ):
                sample.add(batch, entropies(model, batch))
                done += len(batch.texts) // samples
                if progress is not None:
                    progress(done, total)
            sample.rewards = rewards_of(sample.texts, sample.ids, asked, reward)
            tell(f"A = {alpha:g}: {len(sample.texts)} completions sampled ({len(found)} of {len(points)})")
    scored = [sample.rewards for sample in found.values() if sample.rewards is not None]
    success, said = one_success(scored, reward, len(texts))
    measured = tuple(_point(alpha, sample, asked, samples, named(reward), success) for alpha, sample in found.items())
    return Curve(measured, len(texts), samples, max_new_tokens, seed, said)


def _models(pair: Pair, alphas: Sequence[float]) -> Iterator[tuple[float, PreTrainedModel, list[int]]]:
    """Each A with a model that has its weights, the same one or its base (one is in memory), and the tokens that end
    what it writes."""
    import torch

    # What is set is rounded as it would be written.
    model, ends = load_model((pair.checkpoint if pair.kind == "model" else pair.base).path)
    if pair.kind == "model":
        places = _places(pair, model)
        with writing.Reader() as reader, torch.no_grad():
            for alpha in alphas:
                for name, place in places.items():
                    _set(place.view(-1), pair.pieces[name], alpha, reader)
                yield alpha, model, ends
        return
    from peft import PeftModel

    for alpha in alphas:
        with tempfile.TemporaryDirectory(prefix="rlmon-") as folder:
            write(pair, alpha, Path(folder, "blend"), note=False)
            with_adapter = loaded(partial(PeftModel.from_pretrained, model), Path(folder, "blend")).eval()
        yield alpha, with_adapter, ends
        model = with_adapter.unload()


def _places(pair: Pair, model: PreTrainedModel) -> dict[str, Any]:
    """Where in the model each tensor of floats is; what is none it has from the checkpoint's files."""
    state: dict[str, Any] = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    places, strange = {}, []
    for name, piece in pair.pieces.items():
        if not piece.tensor.is_float:
            continue
        found = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in state), None)
        if found is not None and tuple(state[found].shape) == piece.tensor.shape:
            places[name] = state[found]
        elif not is_constant(piece.tensor):
            strange.append(name)
    held = {tensor.data_ptr() for tensor in places.values()}
    strange += [name for name, tensor in model.named_parameters() if tensor.data_ptr() not in held]
    if strange:
        shown = several([one_line(name, 100) for name in strange], 3)
        raise WeightsError(
            f"transformers gives weights of this model other names when it loads them ({shown}), so that they cannot "
            "be set in place. Write blends with --alpha and --out, and sample from those."
        )
    return places


def _set(place: Any, piece: Piece, alpha: float, reader: writing.Reader) -> None:
    import torch

    at = 0
    for _, made in writing.stretches(piece, alpha, reader, set()):
        values = torch.from_numpy(decoded(bytearray(made), piece.tensor.dtype))
        place[at : at + len(values)].copy_(values)
        at += len(values)


# -- scoring and measuring -------------------------------------------------------------------------------------------


def _point(alpha: float, sample: _Sample, asked: Prompts, samples: int, name: str, success: Success) -> Point:
    """The metrics of the catalogue, from sums as in a step of training."""
    modes = ModeSet.build(None)
    families = Families(WATCHING, modes.names)
    batch = RolloutBatch(
        round=0,
        split="eval",
        step=0,
        group_size=samples,
        global_row=range(len(sample.texts)),
        prompt_id=prompt_identities(asked.prompts),
        source=["prompts"] * len(sample.texts),
        prompts=[render_prompt(prompt) for prompt in asked.prompts],
        completions=sample.texts,
        completion_ids=sample.ids,
        rewards={} if sample.rewards is None else {name: sample.rewards},
        reward=sample.rewards,
        truncated=sample.cut,
    )
    success_B = success.of(batch.reward, batch.rewards, len(batch))
    features = Featurizer(modes, b"rlmon blend").features(batch)
    groups = groups_of_batch(batch, success_B)
    rows = rows_of(batch, features, success_B)
    sums = families.zeros()
    families.add_rows(sums, RankRows(batch, features, groups, rows))
    families.add_round(sums, RoundRows(rows, groups))
    start = 0
    for tokens in sample.tokens:
        code_B = features.mode_code[start : start + len(tokens.tokens_B)]
        start += len(tokens.tokens_B)
        families.add_tokens(sums, tokens, code_B)
    metrics, missing = families.finish(sums)
    rewards = [value for value in sample.rewards or () if value is not None]
    known_B = success_B[np.isfinite(success_B)]
    return Point(
        alpha=alpha,
        completions=len(batch),
        accuracy=float(known_B.mean()) if known_B.size else None,
        reward=float(np.mean(rewards)) if rewards else None,
        metrics={name: metrics[name] for name in SHOWN},
        missing={name: missing[name] for name in SHOWN if name in missing},
    )
