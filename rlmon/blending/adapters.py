"""A LoRA adapter whose update is A times what it was.

The update of a LoRA layer is ``lora_alpha / r`` (rank-stabilised: ``lora_alpha / sqrt(r)``) times a product of two
matrices, so that ``lora_alpha`` times A scales it exactly, whatever the type of the weights, which are copied. Layers
that were trained whole (``modules_to_save``, biases) are blended with the base's.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlmon.blending.folders import Folder, named_base
from rlmon.blending.matching import Matched, Piece, added_tokens, fits, tied
from rlmon.blending.tensors import Tensor, names
from rlmon.errors import WeightsError
from rlmon.printable import one_line

DEFAULT_ALPHA = 8
"""PEFT's ``lora_alpha`` where a configuration names none."""
_FROM_THE_BASE = ("gaussian", "eva", "orthogonal")
"""Ways to begin an adapter, beside PEFT's default, that leave the base as it is."""
_NOT_LINEAR = {
    "use_dora": "its update is no multiple of a product of matrices (DoRA normalises the weights)",
    "trainable_token_indices": "it holds rows of the embedding (trainable_token_indices), which no scale reaches",
    "layer_replication": "it repeats layers of the base (layer_replication), so that at A = 0 it would not be the base",
    "arrow_config": "it is routed between several (arrow_config)",
    "monteclora_config": "it samples its weights (monteclora_config)",
    "kasa_config": "it changes the weights of the base (kasa_config)",
}
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(?P<end>\.weight|\.bias)?\Z")


def match_adapter(base: Folder, checkpoint: Folder) -> Matched:
    """The tensors of an adapter; those that are trained whole, with the base's. Raises ``WeightsError`` where it cannot
    be scaled, or is of another base."""
    assert checkpoint.adapter is not None
    _refuse_kinds(checkpoint, checkpoint.adapter)
    give = f"Give as BASE the model that it was trained on{named_base(checkpoint.adapter)}."
    same_name, notes = _of_this_base(base, checkpoint.adapter)
    theirs, pieces = base.tensors, dict[str, Piece]()
    parts: dict[str, dict[str, Tensor]] = {}
    whole: list[Tensor] = []
    for name, tensor in checkpoint.tensors.items():
        found = _LORA.match(name)
        if found is None:
            whole.append(tensor)
            continue
        pieces[name] = Piece(tensor, None)
        if found["end"] != ".bias":
            parts.setdefault(_in_the_model(found["module"]), {})[found["part"][-1]] = tensor
    if not parts:
        raise WeightsError(
            f"The adapter in CHECKPOINT has no LoRA weights; there are {names(checkpoint.tensors) or 'none'}."
        )
    unknown, unlike = [], []
    for module, of in parts.items():
        other = counterpart(f"{module}.weight", theirs)
        if other is None:
            unknown.append(module)
        elif "A" in of and "B" in of and not _spans(of["A"].shape, of["B"].shape, other.shape):
            unlike.append(f"{one_line(module, 100)} ({list(other.shape)} in BASE)")
    if unlike:
        raise WeightsError(f"The adapter does not fit BASE, where layers have other shapes: {names(unlike)}. {give}")
    absent = [module for module in unknown if not any(name.startswith(f"{module}.") for name in theirs)]
    if absent and not same_name:
        raise WeightsError(f"The adapter changes layers that BASE does not have: {names(absent)}. {give}")
    if unknown:
        notes.append(
            f"Layers of the adapter have other names in BASE's files, so that their shapes were not compared: "
            f"{names(unknown)}."
        )
    pieces |= _whole_layers(whole, theirs)
    if whole:
        notes.append(
            "Tensors that were trained whole (modules_to_save, biases) are blended with BASE's: "
            f"{names(tensor.name for tensor in whole)}."
        )
    notes += added_tokens(pieces.values(), base, checkpoint)
    return pieces, notes


def scaled_config(config: Mapping[str, Any], alpha: float) -> str:
    """``adapter_config.json`` with ``lora_alpha``, that of all layers and those of some, times ``alpha``."""
    scaled = dict(config)
    scaled["lora_alpha"] = _times(config.get("lora_alpha", DEFAULT_ALPHA), alpha)
    of_layers = config.get("alpha_pattern")
    if isinstance(of_layers, dict):
        scaled["alpha_pattern"] = {name: _times(value, alpha) for name, value in of_layers.items()}
    elif of_layers:
        scaled["alpha_pattern"] = _times(of_layers, alpha)  # which refuses it
    return json.dumps(scaled, indent=2, sort_keys=True) + "\n"


def counterpart(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The tensor of this name in a base's files, where names may lack their first parts, or have more of them."""
    if name in tensors:
        return tensors[name]
    near = [other for other in tensors if other.endswith(f".{name}") or name.endswith(f".{other}")]
    return tensors[near[0]] if len(near) == 1 else tied(name, tensors)


def _whole_layers(whole: list[Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Piece]:
    found = {tensor.name: Piece(tensor, counterpart(_in_the_model(tensor.name), theirs)) for tensor in whole}
    odd = [name for name, piece in found.items() if piece.base is None or not fits(piece.base, piece.tensor)]
    if odd:
        raise WeightsError(
            f"The adapter has tensors that are no LoRA weights and have no counterpart of that shape in BASE: "
            f"{names(odd)}. {_MERGE}"
        )
    return found


def _times(value: Any, alpha: float) -> float | int:
    shown = one_line(repr(value), 60)
    if type(value) not in (int, float):
        raise WeightsError(f"adapter_config.json of CHECKPOINT has the scale {shown}: a number is needed.")
    try:
        product = float(value) * alpha
    except OverflowError:
        product = math.inf
    if not math.isfinite(product):
        raise WeightsError(
            f"adapter_config.json of CHECKPOINT has the scale {shown}, which times A is no finite number: type an A "
            "nearer to 1."
        )
    return int(product) if product == int(product) else product


def _in_the_model(name: str) -> str:
    """The name as the model without an adapter has it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save", "")


def _spans(a: tuple[int, ...], b: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether a product of matrices of the shapes [r, in] and [out, r] is of the shape [out, in] or [in, out]; only
    layers of two dimensions (no convolutions, no experts) are compared."""
    return len(of) != 2 or (len(a) == len(b) == 2 and a[0] == b[1] and of in ((b[0], a[1]), (a[1], b[0])))


_MERGE = (
    'Merge it into a full model and blend that: python -c "from peft import AutoPeftModelForCausalLM as M; '
    "M.from_pretrained('CHECKPOINT').merge_and_unload().save_pretrained('MERGED')\""
)


def _refuse_kinds(checkpoint: Folder, config: Mapping[str, Any]) -> None:
    why = [reason for name, reason in _NOT_LINEAR.items() if config.get(name)]
    if config.get("peft_type") != "LORA":
        kind = one_line(str(config.get("peft_type")), 40)
        why.insert(0, f"it is of the kind {kind}, and LORA is what can be scaled")
    if any("lora_magnitude_vector" in name for name in checkpoint.tensors):
        why.append(_NOT_LINEAR["use_dora"])
    began = config.get("init_lora_weights", True)
    if isinstance(began, str) and began not in _FROM_THE_BASE:
        why.append(
            f"it began as {one_line(began, 40)} (init_lora_weights), for which PEFT may change the base too, so that "
            "at A = 0 it would not be BASE"
        )
    if why:
        raise WeightsError(f"The adapter in CHECKPOINT cannot be scaled: {why[0]}. {_MERGE}")


def _of_this_base(base: Folder, config: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether BASE is what the adapter names, as far as names tell, and what to say where it is not."""
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return False, ["The adapter does not name its base: that its shapes fit BASE is all that is known."]
    home = Path(os.path.realpath(base.path))
    called = {home.name.lower(), str(base.config.get("_name_or_path", "")).rstrip("/").rpartition("/")[2].lower()}
    if home.parent.name == "snapshots":  # as the Hugging Face Hub is cached: models--OWNER--NAME/snapshots/COMMIT
        called.add(home.parent.parent.name.rpartition("--")[2].lower())
    if os.path.abspath(named) == str(home) or named.rstrip("/").rpartition("/")[2].lower() in called - {""}:
        return True, []
    return False, [
        f"The adapter names the base {one_line(named, 120)}, and BASE is {one_line(str(base.path), 120)}: the shapes "
        "fit; whether it is the same model is for you to know."
    ]
