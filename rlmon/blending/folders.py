"""What a folder of a model or an adapter holds, as transformers, TRL and PEFT write it; what cannot be used is refused
with what to type."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmon.blending.tensors import Shard, Tensor, names, read_shard, unreadable
from rlmon.errors import WeightsError
from rlmon.printable import one_line, several

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
REFERENCE = "ref"
"""The adapter that TRL keeps beside the one it trains, to compare with: it is not read."""
MOST_JSON_BYTES = 256 * 2**20
_PICKLED = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)\Z")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)\Z")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\Z")
_COPIED = re.compile(
    r"config\.json|generation_config\.json|(special_tokens_map|added_tokens|preprocessor_config|processor_config"
    r"|video_preprocessor_config)\.json|tokenizer.*\.(json|model)|vocab\.(json|txt)|merges\.txt|tekken\.json|chat_template.*"
    r"\.(jinja|json)|spiece\.model|sentencepiece\.bpe\.model|.*\.tiktoken"
)
_TOKENIZER = re.compile(r"tokenizer.*\.(json|model)|vocab\.(json|txt)|spiece\.model|tekken\.json|.*\.tiktoken")


@dataclass(frozen=True)
class Folder:
    """A folder with weights."""

    path: Path
    role: str
    """What it is called on the command line: ``BASE`` or ``CHECKPOINT``."""
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    index: Path | None = None
    """The file that says which tensor lies in which shard, where there is one."""
    adapter: Mapping[str, Any] | None = None
    """``adapter_config.json``, where it is an adapter."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    def copied(self) -> list[Path]:
        """Its configuration and tokenizer, which a blend has too."""
        files = [file for file in sorted(self.path.iterdir()) if _COPIED.fullmatch(file.name)]
        return [_inside(self.path, self.role, file) for file in files]

    def tokenizer(self) -> list[Path]:
        return [file for file in self.copied() if _TOKENIZER.fullmatch(file.name)]


def open_model(path: Path, role: str = "BASE") -> Folder:
    """A full model."""
    there, shown = _listed(path, role), one_line(str(path))
    if ADAPTER_CONFIG in there:
        trained_on = named_base(read_json(path / ADAPTER_CONFIG))
        raise WeightsError(
            f"{role} has to be a full model, and {shown} is an adapter. Give the folder of the model that the adapter "
            f"was trained on{trained_on}."
        )
    config = read_json(path / CONFIG) if CONFIG in there else {}
    if "quantization_config" in config:
        raise WeightsError(
            f"The weights of {role} ({shown}) are quantised, and what lies between two of them cannot be "
            "computed from such numbers. Give the model as it was before it was quantised."
        )
    if MODEL in there:
        return Folder(path, role, config, _shards(path, role, [MODEL], {}))
    if INDEX not in there:
        raise _no_weights(path, role, there)
    index = _inside(path, role, path / INDEX)
    placed = _placed(index)
    return Folder(path, role, config, _shards(path, role, sorted(set(placed.values())), placed), index)


def open_checkpoint(path: Path) -> Folder:
    """A full model or an adapter."""
    role = "CHECKPOINT"
    there, shown = _listed(path, role), one_line(str(path))
    within = sorted(file.parent.name for file in path.glob(f"*/{ADAPTER_CONFIG}"))
    others = [name for name in within if name != REFERENCE and not _CHECKPOINT.match(name)]
    is_model = MODEL in there or INDEX in there
    if ADAPTER_CONFIG not in there:
        if others and not is_model:
            found = several([one_line(str(path / name)) for name in others], 3)
            raise WeightsError(f"{role} holds adapters in folders of their own: {found}. Give one of these folders.")
        return open_model(path, role)
    if is_model:
        raise WeightsError(f"{role} ({shown}) holds a full model and an adapter: move one of them to another folder.")
    if others:
        raise WeightsError(
            f"{role} ({shown}) holds several adapters: one of its own and {several(others, 3)}. Only one "
            f"can be scaled: copy {ADAPTER_CONFIG} and {ADAPTER} of the one that is meant to another folder."
        )
    if ADAPTER not in there:
        raise _no_weights(path, role, there, adapter=True)
    config = read_json(path / CONFIG) if CONFIG in there else {}
    adapter = read_json(path / ADAPTER_CONFIG)
    return Folder(path, role, config, _shards(path, role, [ADAPTER], {}), None, adapter)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ``WeightsError`` for anything else."""
    try:
        if file.exists() and (not file.is_file() or file.stat().st_size > MOST_JSON_BYTES):
            raise ValueError(f"it is no plain file of at most {MOST_JSON_BYTES >> 20} MiB")
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no mapping")
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{one_line(str(file))} is not the JSON that it should be: {error}.") from error
    return found


def words(tokenizer: Path) -> dict[str, int]:
    """The number of each token in a ``tokenizer.json``; none where there is no such file, or it is of another kind."""
    if not tokenizer.is_file():
        return {}
    told = read_json(tokenizer)
    model, added = told.get("model"), told.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found: dict[str, int] = {}
    if isinstance(vocabulary, dict):
        found |= {word: number for word, number in vocabulary.items() if isinstance(number, int)}
    elif isinstance(vocabulary, list):
        found |= {str(pair[0]): number for number, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            found[str(token.get("content"))] = token["id"]
    return found


def _listed(path: Path, role: str) -> list[str]:
    """What lies in the folder."""
    try:
        return sorted(file.name for file in path.iterdir())
    except NotADirectoryError:
        raise WeightsError(
            f"{role} has to be a folder, and {one_line(str(path))} is a file. Give the folder that it lies in: "
            f"{one_line(str(path.parent))}."
        ) from None
    except FileNotFoundError:
        name = str(path) if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)) else "NAME"
        raise WeightsError(
            f"{role} has to be a folder with {MODEL}; there is no {one_line(str(path))}. A model of the Hugging "
            f"Face Hub has to be on this disk first: hf download {name} --local-dir FOLDER."
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error


def _no_weights(path: Path, role: str, there: list[str], *, adapter: bool = False) -> WeightsError:
    shown = one_line(str(path))
    pickled = [name for name in there if _PICKLED.match(name) and not _NO_WEIGHTS.match(name)]
    if pickled:
        loads = "peft import AutoPeftModelForCausalLM" if adapter else "transformers import AutoModelForCausalLM"
        return WeightsError(
            f"The weights of {role} are pickled ({one_line(pickled[0], 60)}), which is a program that would have to be "
            f'run to read them, and rlmon does not; where you trust it, write them anew: python -c "from {loads} as M; '
            f"M.from_pretrained('{shown}').save_pretrained('{shown}-safetensors')\""
        )
    if adapter:
        return WeightsError(f"{role} ({shown}) has {ADAPTER_CONFIG} and no {ADAPTER}: save it again.")
    saved = {int(number[1]): name for name in there if (number := _CHECKPOINT.match(name))}
    hint = f" Give a checkpoint in it: {one_line(str(path / saved[max(saved)]))}." if saved else ""
    found = several([one_line(name, 60) for name in there], 6) or "nothing"
    return WeightsError(
        f"{role} ({shown}) has no weights: {MODEL} or {INDEX} is needed"
        f"{f', or {ADAPTER}' if role == 'CHECKPOINT' else ''}; there is {found}.{hint}"
    )


def _placed(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise WeightsError(
            f"{one_line(str(index))} has no weight_map of tensors and their files: save the model again."
        )
    for name in placed.values():
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise WeightsError(
                f"{one_line(str(index))} names the file {one_line(name, 120)!r}: only safetensors files in "
                "the folder itself are read, such as model-00001-of-00002.safetensors."
            )
        if not (index.parent / name).exists():
            raise WeightsError(f"{one_line(str(index))} names {name}, which is not there: copy the whole folder again.")
    return placed


def _shards(path: Path, role: str, files: list[str], placed: Mapping[str, str]) -> tuple[Shard, ...]:
    """What the headers of its files say."""
    shards = tuple(read_shard(_inside(path, role, path / name)) for name in files)
    where: dict[str, str] = {}
    for tensor in (tensor for shard in shards for tensor in shard.tensors):
        if tensor.name in where:
            raise WeightsError(
                f"{role} has {one_line(tensor.name, 120)} twice, in {where[tensor.name]} and "
                f"{tensor.file.name}: save the model again."
            )
        where[tensor.name] = tensor.file.name
    lacking = [name for name, file in placed.items() if where.get(name) != file]
    if lacking:
        raise WeightsError(
            f"{role}: {INDEX} names tensors that are not in their files: {names(lacking)}. Copy the whole folder again."
        )
    return shards


def _inside(folder: Path, role: str, file: Path) -> Path:
    """The file, which is a plain one of the folder, or of the cache of the Hugging Face Hub that the folder is part of,
    whose snapshots are links to its blobs: a folder may come from anybody, and a link in it lead anywhere."""
    real, home = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    homes = {home}
    if home.parent.name == "snapshots":
        homes.add(home.parent.parent / "blobs")
    if real.parent not in homes or not real.is_file():
        raise WeightsError(
            f"{role}: {one_line(str(file))} is a link that leads out of the folder, or no plain file. Copy the "
            "file itself to the folder."
        )
    return file


def named_base(adapter: Mapping[str, Any]) -> str:
    """In brackets, the base that an adapter's configuration names; nothing where it names none."""
    name = adapter.get("base_model_name_or_path")
    return f" ({one_line(name, 120)})" if isinstance(name, str) and name else ""
