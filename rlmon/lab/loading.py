"""Models and tokenizers from folders of this disk, without the code that may lie in them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlmon.errors import ConfigError, MissingExtraError, WeightsError
from rlmon.printable import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def require(command: str, *packages: str) -> None:
    """Raises ``MissingExtraError`` where one of ``packages`` is not installed, which ``command`` needs."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(
                f"`{command}` needs {package}, which is not installed. Type: pip install 'rlmon[trl]'"
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def loaded(load: Callable[..., Any], folder: Path, **how: Any) -> Any:
    """What transformers or PEFT make of a folder: from this disk, without code that lies in it."""
    try:
        return load(folder, local_files_only=True, **how)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        said = one_line(str(error).strip().split("\n", 1)[0], 240)
        raise WeightsError(f"cannot load {one_line(str(folder))} to sample from it: {said}") from error


def device_name() -> str:
    """What models are loaded to."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(folder: Path) -> tuple[PreTrainedModel, list[int]]:
    """The model in a folder, ready to be sampled from at the temperature that is asked for, and the tokens that it says
    end what it writes."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    device = device_name()
    # A processor computes slowly, if at all, in half precision.
    how = {"dtype": "auto" if device == "cuda" else torch.float32, "use_safetensors": True, "trust_remote_code": False}
    model = loaded(AutoModelForCausalLM.from_pretrained, folder, **how).to(device).eval()
    told = getattr(model, "generation_config", None)
    ends: Any = getattr(told, "eos_token_id", None)
    # What else it says (a penalty on repetition, beams, a kind of cache) would not be plain sampling.
    model.generation_config = GenerationConfig(use_cache=True)
    return model, [] if ends is None else np.atleast_1d(ends).tolist()


def load_tokenizer(folder: Path, role: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; ``role``: what the command line calls it."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = loaded(AutoTokenizer.from_pretrained, folder, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise WeightsError(f"The tokenizer of {role} has no end token: name one (eos_token) in tokenizer_config.json.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def as_text(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> str:
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
