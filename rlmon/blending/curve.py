"""What blends answer: accuracy, formats and wording at several A, from completions that are sampled from each.

The one part of blending that makes a model, by transformers (and PEFT), and that runs something of the user's: the
reward function. One model is in memory, whose weights are set for each A.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import rlmon.blending.writing as writing
from rlmon.blending.making import Pair, write
from rlmon.blending.matching import Piece, is_constant
from rlmon.blending.tensors import decoded
from rlmon.errors import ConfigError, MissingExtraError, WeightsError
from rlmon.lab.sampling import Drawn, draws, entropies
from rlmon.metrics.families import WATCHING
from rlmon.metrics.family import RankRows, RoundRows
from rlmon.metrics.features import Featurizer
from rlmon.metrics.formats import ModeSet, final_answer, normalise_answer
from rlmon.metrics.groups import groups_of_batch
from rlmon.metrics.prompts import prompt_identities, render_prompt
from rlmon.metrics.rows import rows_of
from rlmon.metrics.step import Families
from rlmon.metrics.success import Deciding, Success
from rlmon.metrics.tokens import TokenSums, token_sums
from rlmon.printable import one_line, several
from rlmon.records import RolloutBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
BY_ANSWER = "answer"
"""The column that is compared with the final answer of a completion, where there is no reward function."""


@dataclass(frozen=True)
class Prompts:
    """Prompts with their other columns, which reward functions read."""

    prompts: list[Any]
    """Text, or messages of a conversation."""
    columns: Mapping[str, list[Any]] = field(default_factory=dict)

    def times(self, copies: int) -> Prompts:
        """Each of them so many times, one after the other."""

        def repeated(values: list[Any]) -> list[Any]:
            return [value for value in values for _ in range(copies)]

        return Prompts(repeated(self.prompts), {name: repeated(values) for name, values in self.columns.items()})


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


# -- what is asked ---------------------------------------------------------------------------------------------------


def read_prompts(file: Path) -> Prompts:
    """A text file with a prompt a line, or JSON (a list, or Lines) of objects with ``prompt`` and other columns. Raises
    ``ConfigError``."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompts {one_line(str(file))}: {error}.") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ConfigError(f"{one_line(str(file))} has no prompts: one a line is needed.")
    rows = _objects(text, lines)
    if rows is None:
        return Prompts([line.rstrip("\r") for line in lines])
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) and not _is_conversation(prompt):
            raise ConfigError(
                f'{one_line(str(file))}: row {number} is no JSON object with a "prompt" that is text or a list of '
                f"messages with role and content: {one_line(str(row), 80)}"
            )
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
    return Prompts([row["prompt"] for row in rows], {name: [row.get(name) for row in rows] for name in names})


def _objects(text: str, lines: list[str]) -> list[Any] | None:
    """The rows of JSON, a line that is none as it is; ``None`` for text."""
    if not lines[0].lstrip().startswith("{"):
        listed = _json(text)
        return listed if isinstance(listed, list) and any(isinstance(row, dict) for row in listed) else None
    return [_json(line) for line in lines]


def _json(text: str) -> Any:
    """What it says; itself, where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt)
    )


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
    needed = ("torch", "transformers", *(("peft",) if pair.kind == "adapter" else ()))
    for package in needed:
        if find_spec(package) is None:
            raise MissingExtraError(
                f"`rlmon blend --prompts` needs {package}, which is not installed. Type: pip install 'rlmon[trl]'"
            )
    points = sorted({0.0, 1.0, *map(float, alphas)})
    asked = prompts.times(samples)
    done, total = 0, len(points) * len(prompts.prompts)
    with _quiet():
        tokenizer = _tokenizer(pair)
        texts = [_as_text(tokenizer, prompt) for prompt in prompts.prompts]
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
            sample.rewards = _rewards(sample, asked, reward)
            tell(f"A = {alpha:g}: {len(sample.texts)} completions sampled ({len(found)} of {len(points)})")
    name = BY_ANSWER if reward is None else getattr(reward, "__name__", "reward")
    scored = [sample.rewards for sample in found.values() if sample.rewards is not None]
    # One meaning of a success for all of them, decided by the rewards of all.
    deciding = Deciding.start(None)
    for rewards in scored:
        deciding = deciding.with_round(rewards, {name: rewards}, prompts=len(texts))
    success = deciding.settled().definition
    said = None
    if scored and (reward is None or success.known):
        said = "the final answer is that of the column answer" if reward is None else str(success)
    measured = tuple(_point(alpha, sample, asked, samples, name, success) for alpha, sample in found.items())
    return Curve(measured, len(texts), samples, max_new_tokens, seed, said)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice of transformers; of warnings those that are for whoever calls it."""
    import transformers

    log = transformers.utils.logging
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _loaded(load: Callable[..., Any], folder: Path, **how: Any) -> Any:
    """What transformers or PEFT make of a folder: from this disk, without code that lies in it."""
    try:
        return load(folder, local_files_only=True, **how)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        said = one_line(str(error).strip().split("\n", 1)[0], 240)
        raise WeightsError(f"cannot load {one_line(str(folder))} to sample from it: {said}") from error


def _tokenizer(pair: Pair) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    home = pair.checkpoint if pair.checkpoint.tokenizer() else pair.base
    tokenizer: PreTrainedTokenizerBase = _loaded(AutoTokenizer.from_pretrained, home.path, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise WeightsError(
            f"The tokenizer of {home.role} has no end token: name one (eos_token) in tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _as_text(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> str:
    """The prompt as the model is to read it; a conversation by the chat template."""
    if isinstance(prompt, str):
        return prompt
    try:
        text = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the checkpoint's, in a sandbox
        said = one_line(str(error), 160)
        raise ConfigError(
            f"a prompt is a conversation, and the tokenizer's chat template cannot take it: {said}"
        ) from error
    # The tokenizer adds its first token itself.
    first = tokenizer.bos_token
    return text.removeprefix(first) if first and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] else text


def _models(pair: Pair, alphas: Sequence[float]) -> Iterator[tuple[float, PreTrainedModel, list[int]]]:
    """Each A with a model that has its weights, the same one or its base (one is in memory), and the tokens that end
    what it writes."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    on_gpu = torch.cuda.is_available()
    # A processor computes slowly, if at all, in half precision. What is set is rounded as it would be written.
    how = {"dtype": "auto" if on_gpu else torch.float32, "use_safetensors": True, "trust_remote_code": False}
    home = pair.checkpoint if pair.kind == "model" else pair.base
    model = _loaded(AutoModelForCausalLM.from_pretrained, home.path, **how).to("cuda" if on_gpu else "cpu").eval()
    told = getattr(model, "generation_config", None)
    ends: Any = getattr(told, "eos_token_id", None)
    ends = [] if ends is None else np.atleast_1d(ends).tolist()
    # What else it says (a penalty on repetition, beams, a kind of cache) would not be temperature 1.
    model.generation_config = GenerationConfig(use_cache=True)
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
        with tempfile.TemporaryDirectory() as folder:
            write(pair, alpha, Path(folder, "blend"), note=False)
            with_adapter = _loaded(partial(PeftModel.from_pretrained, model), Path(folder, "blend")).eval()
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


def _rewards(sample: _Sample, asked: Prompts, reward: Callable[..., Any] | None) -> list[float | None] | None:
    """A reward for each completion, where there is something to score them by."""
    if reward is None:
        if BY_ANSWER not in asked.columns:
            return None
        right = [normalise_answer(str(answer)) for answer in asked.columns[BY_ANSWER]]
        return [float(final_answer(text) == answer) for text, answer in zip(sample.texts, right, strict=True)]
    name = getattr(reward, "__name__", "the reward function")
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(asked.prompts, sample.texts, strict=True)
    ]
    own = {"prompts": asked.prompts, "completions": completions, "completion_ids": sample.ids}
    try:
        found = reward(**{**asked.columns, **own})
        if inspect.iscoroutine(found):
            found = asyncio.run(found)
        values = [None if value is None else float(value) for value in found]
    except Exception as error:  # the user's own code
        raise ConfigError(f"{name} raised {type(error).__name__}: {one_line(str(error), 240)}") from error
    if len(values) != len(completions):
        raise ConfigError(
            f"{name} gave {len(values)} rewards for {len(completions)} completions: one for each is needed."
        )
    return [None if value is None or not math.isfinite(value) else value for value in values]


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
