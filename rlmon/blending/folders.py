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
"""The adapter that TRL keeps beside the one it trains, to compare with."""
MOST_JSON_BYTES = 256 * 2**20
_PICKLED = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)\Z")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)\Z")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\Z")
_COPIED = re.compile(
    r"config\.json|generation_config\.json|(special_tokens_map|added_tokens|preprocessor_config|processor_config"
    r"|video_preprocessor_config)\.json|tokenizer.*\.(json|model)|vocab\.(json|txt)|merges\.txt|chat_template.*"
    r"\.(jinja|json)|spiece\.model|sentencepiece\.bpe\.model|.*\.tiktoken"
)
_TOKENIZER = re.compile(r"tokenizer.*\.(json|model)|vocab\.(json|txt)|spiece\.model|.*\.tiktoken")


@dataclass(frozen=True)
class Folder:
    """A folder with weights."""

    path: Path
    role: str
    """What it is called on the command line: ``BASE`` or ``CHECKPOINT``."""
    shards: tuple[Shard, ...]
    index: Path | None
    """The file that says which tensor lies in which shard, where there is one."""
    config: Mapping[str, Any]
    adapter: Mapping[str, Any] | None
    """``adapter_config.json``, where it is an adapter."""
    beside: tuple[str, ...] = ()
    """Adapters in it that are not read."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    def copied(self) -> list[Path]:
        """Its configuration and tokenizer, which a blend has too."""
        return [_inside(self, file) for file in sorted(self.path.iterdir()) if _COPIED.fullmatch(file.name)]

    def tokenizer(self) -> list[Path]:
        return [file for file in self.copied() if _TOKENIZER.fullmatch(file.name)]

    def code(self) -> list[str]:
        """Files with code of its own, which is neither run nor copied."""
        return sorted(file.name for file in self.path.glob("*.py"))


def open_model(path: Path, role: str = "BASE") -> Folder:
    """A full model."""
    there = _listed(path, role)
    if ADAPTER_CONFIG in there:
        raise WeightsError(
            f"{role} has to be a full model, and {one_line(str(path))} is an adapter. Give the folder of the "
            f"model that the adapter was trained on{_named_base(path)}."
        )
    folder = _with_shards(path, role, there)
    if "quantization_config" in folder.config:
        raise WeightsError(
            f"The weights of {role} ({one_line(str(path))}) are quantised, and what lies between two of them cannot be "
            "computed from such numbers. Give the model as it was before it was quantised."
        )
    return folder


def open_checkpoint(path: Path) -> Folder:
    """A full model or an adapter."""
    role = "CHECKPOINT"
    there = _listed(path, role)
    adapters = sorted(file.parent.name for file in path.glob(f"*/{ADAPTER_CONFIG}"))
    if ADAPTER_CONFIG not in there:
        adapters = [name for name in adapters if not _CHECKPOINT.match(name)]
        if adapters and MODEL not in there and INDEX not in there:
            shown = several([one_line(str(path / name)) for name in adapters], 3)
            raise WeightsError(f"{role} holds adapters in folders of their own: {shown}. Give one of these folders.")
        return open_model(path, role)
    if MODEL in there or INDEX in there:
        raise WeightsError(
            f"{role} ({one_line(str(path))}) holds a full model and an adapter: move one of them to another folder."
        )
    others = [name for name in adapters if not _CHECKPOINT.match(name)]
    if [name for name in others if name != REFERENCE]:
        raise WeightsError(
            f"{role} ({one_line(str(path))}) holds several adapters: one of its own and {several(others, 3)}. Only one "
            f"can be scaled: copy {ADAPTER_CONFIG} and {ADAPTER} of the one that is meant to another folder."
        )
    if ADAPTER not in there:
        pickled = [name for name in there if _PICKLED.match(name) and not _NO_WEIGHTS.match(name)]
        if pickled:
            raise _pickle(path, role, pickled[0], "peft import AutoPeftModelForCausalLM")
        raise WeightsError(f"{role} ({one_line(str(path))}) has {ADAPTER_CONFIG} and no {ADAPTER}: save it again.")
    file = path / ADAPTER
    folder = Folder(
        path, role, (), None, read_json(path / CONFIG) if CONFIG in there else {}, read_json(path / ADAPTER_CONFIG),
        beside=tuple(others),
    )  # fmt: skip
    return _filled(folder, [file], None)


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
        raise WeightsError(
            f"{role} has to be a folder with {MODEL}; there is no {one_line(str(path))}. A model of the Hugging "
            "Face Hub has to be on this disk first, for example: hf download NAME --local-dir FOLDER."
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error


def _with_shards(path: Path, role: str, there: list[str]) -> Folder:
    """The folder of a full model, with its shards."""
    folder = Folder(path, role, (), None, read_json(path / CONFIG) if CONFIG in there else {}, None)
    if MODEL in there:
        return _filled(folder, [path / MODEL], None)
    if INDEX in there:
        return _filled(folder, *_shards_of(folder, path / INDEX))
    pickled = [name for name in there if _PICKLED.match(name) and not _NO_WEIGHTS.match(name)]
    if pickled:
        raise _pickle(path, role, pickled[0], "transformers import AutoModelForCausalLM")
    saved = {int(number[1]): name for name in there if (number := _CHECKPOINT.match(name))}
    hint = f" Give a checkpoint in it: {one_line(str(path / saved[max(saved)]))}." if saved else ""
    found = several([one_line(name, 60) for name in there], 6) or "nothing"
    raise WeightsError(
        f"{role} ({one_line(str(path))}) has no weights: {MODEL} or {INDEX} is needed"
        f"{f', or {ADAPTER}' if role == 'CHECKPOINT' else ''}; there is {found}.{hint}"
    )


def _shards_of(folder: Folder, index: Path) -> tuple[list[Path], Mapping[str, str]]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise WeightsError(
            f"{one_line(str(index))} has no weight_map of tensors and their files: save the model again."
        )
    files = []
    for name in sorted(set(placed.values())):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise WeightsError(
                f"{one_line(str(index))} names the file {one_line(name, 120)!r}: only safetensors files in "
                "the folder itself are read, such as model-00001-of-00002.safetensors."
            )
        if not (folder.path / name).exists():
            raise WeightsError(f"{one_line(str(index))} names {name}, which is not there: copy the whole folder again.")
        files.append(folder.path / name)
    return files, placed


def _filled(folder: Folder, files: list[Path], placed: Mapping[str, str] | None) -> Folder:
    """With what the headers of its files say."""
    shards = tuple(read_shard(_inside(folder, file)) for file in files)
    where: dict[str, Path] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in where:
                raise WeightsError(
                    f"{folder.role} has {one_line(tensor.name, 120)} twice, in {where[tensor.name].name} and "
                    f"{tensor.file.name}: save the model again."
                )
            where[tensor.name] = tensor.file
    lacking = [name for name, file in (placed or {}).items() if name not in where or where[name].name != file]
    if lacking:
        raise WeightsError(
            f"{folder.role}: {INDEX} names tensors that are not in their files: {names(lacking)}. Copy the whole "
            "folder again."
        )
    index = None if placed is None else _inside(folder, folder.path / INDEX)
    return Folder(folder.path, folder.role, shards, index, folder.config, folder.adapter, folder.beside)


def _inside(folder: Folder, file: Path) -> Path:
    """The file, which is a plain one of the folder, or of the cache of the Hugging Face Hub that the folder is part of,
    whose snapshots are links to its blobs: a folder may come from anybody, and a link in it lead anywhere."""
    real, home = Path(os.path.realpath(file)), folder.path.resolve()
    homes = {home}
    if home.parent.name == "snapshots":
        homes.add(home.parent.parent / "blobs")
    if real.parent not in homes or not real.is_file():
        raise WeightsError(
            f"{folder.role}: {one_line(str(file))} is a link that leads out of the folder, or no plain file. Copy the "
            "file itself to the folder."
        )
    return file


def _pickle(path: Path, role: str, name: str, imported: str) -> WeightsError:
    shown = one_line(str(path))
    return WeightsError(
        f"The weights of {role} are pickled ({one_line(name, 60)}), which is a program that would have to be run to "
        f'read them, and rlmon does not; where you trust it, write them anew: python -c "from {imported} as M; '
        f"M.from_pretrained('{shown}').save_pretrained('{shown}-safetensors')\""
    )


def _named_base(path: Path) -> str:
    try:
        name = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    except WeightsError:
        return ""
    return f" ({one_line(name, 120)})" if isinstance(name, str) and name else ""
