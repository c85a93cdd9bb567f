"""What both models answer to the same prompts, and how sure each was of that, kept in a folder a batch at a time.

Four parts, each a file of JSON Lines: the base's completions, the checkpoint's, and what both models make of either. A
batch has random numbers of its own, so that a part goes on after its last whole batch as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import rlmon.blending.writing as writing
from rlmon.blending.folders import ADAPTER_CONFIG, TOKENIZER, Folder, read_json, words
from rlmon.blending.making import Pair
from rlmon.errors import ConfigError, ReadError, RLMonError, WeightsError
from rlmon.lab.libraries import versions
from rlmon.lab.loading import as_text, device_name, load_model, load_tokenizer, loaded, quiet, require
from rlmon.lab.sampling import Drawn, draws, entropies, entropy_and_kl
from rlmon.printable import one_line, several
from rlmon.statistics import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOTE = "probe.json"
SCHEMA_VERSION = 1
SIDES = ("base", "checkpoint")
LOGITS_AT_ONCE = 2**26
"""Of each model, where two are compared: half a gigabyte."""
Row = dict[str, Any]
Tell = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How both are sampled."""

    samples: int = 16
    """Completions a prompt."""
    max_new_tokens: int = 256
    batch: int = 64
    """Completions that are sampled together: those of one prompt at least."""
    seed: int = 0
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Sampled:
    """What one model answered, prompt by prompt."""

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    cut: Sequence[bool]
    """Whether a completion has no end token."""
    entropy_nats: Floats
    """Of the model that wrote it, summed over the tokens of each completion."""
    kl_nats: Floats
    """KL(the model that wrote it || the other), exact over the vocabulary, summed likewise; NaN where the two do not
    have the same tokens."""


# -- the folder ------------------------------------------------------------------------------------------------------


def fingerprint(pair: Pair, prompts: Sequence[Any], setting: Setting) -> dict[str, Any]:
    """What decides the samples, apart from versions of software: SHA-256 of every file of both models and of the
    prompts, and the settings."""
    return {
        "schema_version": SCHEMA_VERSION,
        "base": _hashes(pair.base),
        "checkpoint": _hashes(pair.checkpoint),
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        **asdict(setting),
    }


def _hashes(folder: Folder) -> dict[str, str]:
    files = {*(shard.file for shard in folder.shards), *folder.copied()}
    files |= set() if folder.adapter is None else {folder.path / ADAPTER_CONFIG}
    return {file.name: writing.sha256(file) for file in sorted(files)}


def default_folder(pair: Pair, decided: Mapping[str, Any]) -> Path:
    """Below the working folder, named after the checkpoint: another for other models, prompts or settings."""
    short = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:8]
    return Path("rlmon-probe", f"{Path(os.path.realpath(pair.checkpoint.path)).name}-{short}")


def open_folder(folder: Path, decided: Mapping[str, Any], device: str) -> str:
    """Makes the folder, or finds that its samples are these; the device that they are begun on. Raises ``ConfigError``
    where it holds anything else."""
    note, shown = folder / NOTE, one_line(str(folder))
    try:
        if note.exists():
            found = json.loads(note.read_text(encoding="utf-8"))
            differ = [name for name in decided if found.get(name) != decided[name]]
            if differ:
                raise ConfigError(
                    f"{shown} holds samples of something else: {several(differ, 4)} differ from what is asked now. "
                    "Type another --out, or leave it away."
                )
            return str(found.get("device"))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--out has to be a folder that is new or of this command, and {shown} is neither.")
        folder.mkdir(parents=True, exist_ok=True)
        writing.write_text(note, json.dumps({**decided, "device": device, "packages": versions()}, indent=2) + "\n")
        return device
    except ConfigError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"cannot use {shown} for samples: {one_line(str(error))}. Type another --out.") from error


def kept(file: Path, batches: Sequence[slice], samples: int) -> list[Row]:
    """The rows of whole batches, in the order of the prompts; what a stop has left of another is cut off the file."""
    try:
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        begun = max((batch.stop for batch in batches if batch.stop * samples <= len(lines)), default=0)
        rows = [json.loads(line) for line in lines[: begun * samples]]
        # Two calls at once leave a batch twice.
        if [row["prompt"] for row in rows] != [at // samples for at in range(len(rows))]:
            raise ValueError
        whole = sum(len(line) + 1 for line in lines[: len(rows)])
        if file.exists() and file.stat().st_size != whole:
            os.truncate(file, whole)
    except OSError as error:
        raise ConfigError(f"cannot use {one_line(str(file))}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ReadError(f"{one_line(str(file))} is damaged: remove its folder, and all is sampled anew.") from error
    return rows


def append(file: Path, rows: Sequence[Row]) -> None:
    try:
        with open(file, "ab") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    except OSError as error:
        raise ConfigError(
            f"cannot write {one_line(str(file))}: {error.strerror or error}. What was sampled is kept: make room, and "
            "type the same again."
        ) from error


# -- the models ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Voice:
    """One of the two, in memory."""

    model: PreTrainedModel
    on: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    """While it is entered the model is this one: an adapter's model is its base as well."""

    def __call__(self, **inputs: Any) -> Any:
        with self.on():
            return self.model(**inputs)

    @property
    def tokens(self) -> int:
        """How many there are in its vocabulary."""
        return int(self.model.get_output_embeddings().weight.shape[0])


class Voices:
    """Base and checkpoint by name, loaded when asked for: of full models only those that are asked for together."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._held: dict[str, Voice] = {}

    def __call__(self, *names: str) -> list[Voice]:
        if self._pair.kind == "model":
            self._held = {name: voice for name, voice in self._held.items() if name in names}
            for name in set(names) - self._held.keys():
                self._held[name] = Voice(load_model(getattr(self._pair, name).path)[0])
        elif not self._held:
            from peft import PeftModel

            model, _ = load_model(self._pair.base.path)
            model = loaded(partial(PeftModel.from_pretrained, model), self._pair.checkpoint.path).eval()
            # Trained biases stay where PEFT switches the adapter off.
            biased = (self._pair.checkpoint.adapter or {}).get("bias", "none") != "none"
            base = Voice(load_model(self._pair.base.path)[0]) if biased else Voice(model, model.disable_adapter)
            self._held = {"base": base, "checkpoint": Voice(model)}
        return [self._held[name] for name in names]


def refuse_other_tokenizer(pair: Pair) -> None:
    """Raises ``WeightsError`` where both have a tokenizer and a token of the base is another number to the
    checkpoint."""
    theirs, ours = (words(folder.path / TOKENIZER) for folder in (pair.base, pair.checkpoint))
    moved = next((word for word, number in theirs.items() if ours and ours.get(word) != number), None)
    if moved is not None:
        raise WeightsError(
            f"BASE and CHECKPOINT have different tokenizers: {one_line(moved, 40)!r} is token {theirs[moved]} in BASE "
            f"and {ours.get(moved, 'none')} in CHECKPOINT. Give as BASE the model that CHECKPOINT was trained from."
        )


def end_tokens(pair: Pair) -> list[int]:
    """Tokens that end a completion, of either: both are sampled with all of them."""
    found: set[int] = set()
    for folder in (pair.base, pair.checkpoint):
        names = [name for name in ("generation_config.json", "config.json") if (folder.path / name).exists()]
        told: Any = read_json(folder.path / names[0]).get("eos_token_id") if names else None
        found |= {token for token in (told if isinstance(told, list) else [told]) if isinstance(token, int)}
    return sorted(found)


def refuse_unreadable(pair: Pair, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], more: int) -> None:
    """Raises ``ConfigError`` for a prompt without a token, and one that the models cannot read with ``more``."""
    told = [folder.config.get("max_position_embeddings", folder.config.get("n_positions"))
            for folder in (pair.base, pair.checkpoint)]  # fmt: skip
    most = min((tokens for tokens in told if isinstance(tokens, int)), default=None)
    for number, text in enumerate(texts, start=1):
        try:
            tokens = len(tokenizer(text).input_ids)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"prompt {number} is no text that the tokenizer can read ({one_line(text, 40)}): remove it."
            ) from error
        if not tokens:
            raise ConfigError(f"prompt {number} is empty: remove it, or write what is asked.")
        if most is not None and tokens + more > most:
            raise ConfigError(
                f"prompt {number} has {tokens:,} tokens, and the models read {most:,} with the completion, for which "
                f"--max-new-tokens wants {more:,}: shorten the prompt, or type a smaller number."
            )


# -- sampling and measuring ------------------------------------------------------------------------------------------


def sample(
    pair: Pair, prompts: Sequence[Any], setting: Setting, out: Path | None = None, *,
    tell: Tell = lambda text: None, progress: Progress | None = None,
) -> tuple[Sampled, Sampled, Path]:  # fmt: skip
    """What the base and the checkpoint answer to ``prompts``, and the folder where that is kept: ``out``, or below the
    working folder. Where it has been begun it goes on.

    Raises ``WeightsError`` where the models cannot be sampled, ``ConfigError`` for a folder of something else.
    """
    require("rlmon probe models", "torch", "transformers", *(("peft",) if pair.kind == "adapter" else ()))
    refuse_other_tokenizer(pair)
    with quiet():
        home = pair.home_of_tokenizer
        tokenizer = load_tokenizer(home.path, home.role)
        ends = end_tokens(pair)
        texts = [as_text(tokenizer, prompt) for prompt in prompts]
        refuse_unreadable(pair, tokenizer, texts, setting.max_new_tokens)
        decided = fingerprint(pair, prompts, setting)
        folder = default_folder(pair, decided) if out is None else out
        device = device_name()
        begun_on = open_folder(folder, decided, device)
        size = max(1, setting.batch // setting.samples)
        batches = [slice(at, min(at + size, len(texts))) for at in range(0, len(texts), size)]
        voices = Voices(pair)
        done = 0

        def parts(kind: str, make: Callable[[str, int, slice], list[Row]]) -> Iterator[list[Row]]:
            nonlocal done
            for name in SIDES:
                file = folder / f"{name}.{kind}.jsonl"
                rows = kept(file, batches, setting.samples)
                begun = len(rows) // setting.samples
                if begun < len(texts):
                    if begun_on != device:
                        raise ConfigError(
                            f"{one_line(str(folder))} was begun on {begun_on}, and this is {device}, which rounds "
                            "otherwise: go on where it was begun, or type another --out."
                        )
                    tell(f"{name}, {kind}: {begun} of {len(texts)} prompts are done, going on." if begun else
                         f"{name}, {kind}: {len(texts)} prompts, {setting.samples} completions of each.")  # fmt: skip
                for at, batch in enumerate(batches):
                    if batch.start < begun:
                        continue
                    try:
                        made = make(name, at, batch)
                    except RLMonError:
                        raise
                    except (RuntimeError, ValueError, IndexError) as error:  # of torch, on weights of anybody
                        raise WeightsError(
                            f"{name.upper()} cannot be sampled: {one_line(str(error).strip(), 240)}. Either its "
                            "weights are no finite numbers, or memory is short: then type a smaller --batch."
                        ) from error
                    made = [{"prompt": batch.start + row // setting.samples, **one} for row, one in enumerate(made)]
                    append(file, made)
                    rows += made
                    if progress is not None:
                        progress(done + len(rows) // setting.samples, 4 * len(texts))
                done += len(texts)
                yield rows

        def draw(name: str, at: int, batch: slice) -> list[Row]:
            (voice,) = voices(name)
            return _drawn(voice, tokenizer, texts[batch], setting, at, ends)

        completions = list(parts("completions", draw))

        def measure(name: str, at: int, batch: slice) -> list[Row]:
            rows = completions[SIDES.index(name)][batch.start * setting.samples : batch.stop * setting.samples]
            one, other = voices(name, *(side for side in SIDES if side != name))
            return _measured(one, other, _again(tokenizer, texts[batch], rows, setting, one.model.device))

        nats = list(parts("nats", measure))
    both = [_side(rows, measured) for rows, measured in zip(completions, nats, strict=True)]
    return both[0], both[1], folder


def _side(rows: Sequence[Row], nats: Sequence[Row]) -> Sampled:
    return Sampled(
        [row["text"] for row in rows],
        [row["ids"] for row in rows],
        [row["cut"] for row in rows],
        np.array([row["entropy_nats"] for row in nats], dtype=np.float64),
        np.array([row["kl_nats"] for row in nats], dtype=np.float64),
    )


def _drawn(
    voice: Voice, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], setting: Setting, at: int, ends: list[int]
) -> list[Row]:
    # Of its own, and far from those of the next seed: a batch can be drawn without the ones before it.
    seed = int(np.random.SeedSequence([setting.seed % 2**32, at]).generate_state(1, np.uint32)[0])
    rows: list[Row] = []
    with voice.on():
        for drawn in draws(
            voice.model,
            tokenizer,
            texts,
            max_new_tokens=setting.max_new_tokens,
            sequences_per_batch=len(texts) * setting.samples,
            seed=seed,
            copies=setting.samples,
            temperature=setting.temperature,
            end_tokens=ends,
        ):
            ids_BT = drawn.ids_BS[:, drawn.prompt_tokens :]
            for text, ids, own, ended in zip(drawn.texts, ids_BT, drawn.own_BT, drawn.ended_B, strict=True):
                rows.append({"text": text, "ids": ids[own].tolist(), "cut": not bool(ended)})
    return rows


def _again(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rows: Sequence[Row], setting: Setting, device: Any
) -> Drawn:
    """The batch as it was drawn."""
    import torch

    inputs = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="left")
    prompt, mask = (inputs[name].repeat_interleave(setting.samples, dim=0) for name in ("input_ids", "attention_mask"))
    longest = max(len(row["ids"]) for row in rows)
    own_BT = torch.tensor([[True] * len(row["ids"]) + [False] * (longest - len(row["ids"])) for row in rows])
    ids_BT = torch.tensor([row["ids"] + [tokenizer.pad_token_id] * (longest - len(row["ids"])) for row in rows])
    return Drawn(
        ids_BS=torch.cat([prompt, ids_BT], dim=1).to(device),
        mask_BS=torch.cat([mask, own_BT.long()], dim=1).to(device),
        temperature=setting.temperature,
        own_BT=own_BT.to(device),
        texts=[row["text"] for row in rows],
        ended_B=torch.tensor([not row["cut"] for row in rows]),
    )


def _measured(one: Voice, other: Voice, drawn: Drawn) -> list[Row]:
    rows: list[Row] = []
    at_once = max(1, LOGITS_AT_ONCE // (drawn.own_BT.shape[1] * one.tokens))
    for start in range(0, len(drawn.texts), at_once):
        part = drawn.rows(slice(start, start + at_once))
        if one.tokens == other.tokens:
            entropy, kl = (found.tolist() for found in entropy_and_kl(one, other, part))
        else:
            entropy = entropies(one, part).masked_fill(~part.own_BT, 0.0).sum(1).tolist()
            kl = [None] * len(entropy)
        rows += [{"entropy_nats": e, "kl_nats": k} for e, k in zip(entropy, kl, strict=True)]
    return rows
