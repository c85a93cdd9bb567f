"""Prompts and completions, as trainers and logs hold them, turned into identity, text and template."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import numpy as np

SOURCE_COLUMNS = ("task", "data_source", "dataset", "source", "language")
"""Columns that say which stratum of the data mix a row belongs to; the first present one is taken."""

_MASKS = (
    (re.compile(r"\"[^\"\n]{0,200}\"|“[^”\n]{0,200}”|`[^`\n]{0,200}`"), "«q»"),
    (re.compile(r"\d+(?:[.,]\d+)*"), "«n»"),
    (re.compile(r"(?<![.!?\n] )(?<!^)\b[A-Z][a-z]+\b|^[A-Z][a-z]+(?= (?:has|had|is|was|buys|gets|wants|'s))"), "«w»"),
)


_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


def text_of(content: Any) -> str:
    """The text of one message's content: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(_part_text(part) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)


def _part_text(part: Mapping[str, Any]) -> str:
    thought = part.get("thinking") or part.get("reasoning")
    return f"<think>{text_of(thought)}</think>" if thought else str(part.get("text") or "")


def render_prompt(prompt: Any) -> str:
    """A prompt as text; a conversation becomes one ``role: content`` paragraph per message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role', '?')}: {_message_text(message)}" for message in prompt)


def render_completion(completion: Any) -> str:
    """What the model itself wrote: assistant messages in order, tool results left out.

    A message is its reasoning as ``<think>...</think>``, its content, and each of its tool calls as a line
    ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``, in JSON with sorted keys.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(
        _message_text(message) for message in completion if message.get("role", "assistant") == "assistant"
    )


def _message_text(message: Mapping[str, Any]) -> str:
    reasoning = next((message[key] for key in ("reasoning_content", "thinking", "reasoning") if message.get(key)), None)
    thought = f"<think>{text_of(reasoning)}</think>" if reasoning else ""
    calls = [*(message.get("tool_calls") or ()), *filter(None, [message.get("function_call")])]
    return "\n".join(filter(None, [thought, text_of(message.get("content")), *map(_tool_call_text, calls)]))


def _tool_call_text(call: Any) -> str:
    # Most dialects wrap name and arguments into "function"; an id is the server's and differs between equal calls.
    made = call.get("function") if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) else call
    if isinstance(made, Mapping):
        arguments = made.get("arguments")
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        made = {"name": made.get("name"), "arguments": arguments}
    return f"<tool_call>{_canonical(made, separators=(', ', ': '))}</tool_call>"


def prompt_identity(prompt: Any) -> str:
    """Hash of the canonical prompt, equal across epochs, ranks and resumes; of images and arrays the content counts."""
    return _identity(prompt, {})


def prompt_identities(prompts: Sequence[Any]) -> list[str]:
    """``prompt_identity`` of each prompt; what several of them share (an image) is read once."""
    seen: dict[int, tuple[Any, Any]] = {}
    return [_identity(prompt, seen) for prompt in prompts]


def _identity(prompt: Any, seen: dict[int, tuple[Any, Any]]) -> str:
    return hashlib.blake2b(_canonical(prompt, seen).encode(), digest_size=12).hexdigest()


def _canonical(
    value: Any, seen: dict[int, tuple[Any, Any]] | None = None, *, separators: tuple[str, str] = (",", ":")
) -> str:
    """``value`` as JSON that says the same for equal content, wherever it lies in memory."""
    known: dict[int, tuple[Any, Any]] = {} if seen is None else seen

    def content(other: Any) -> Any:
        # The object is kept beside its content: as long as it lives no other one has its address.
        if id(other) not in known:
            known[id(other)] = (other, _content(other))
        return known[id(other)][1]

    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=True, default=content, separators=separators)
    except (TypeError, ValueError, RecursionError):  # keys of several kinds, a circle
        return _ADDRESS.sub("", repr(value)).encode("unicode_escape").decode("ascii")


def _content(value: Any) -> Any:
    """What stands in JSON for a value that JSON does not know: the digest of its content, never its address."""
    kind = type(value).__name__
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            return [kind, _digest(bytes(value))]
        if isinstance(value, Set):
            return [kind, sorted(map(_canonical, value))]
        if isinstance(value, Mapping):
            return dict(value)
        if all(hasattr(value, name) for name in ("mode", "size", "tobytes")):  # a picture (PIL)
            palette = value.getpalette() if value.mode == "P" else None
            return ["image", value.mode, list(value.size), _digest(value.tobytes()), palette]
        if hasattr(value, "detach"):  # a tensor of torch
            kind, value = f"{kind} {value.dtype}", value.detach().cpu()
            value = value.numpy() if "bfloat16" not in kind else value.float().numpy()
        if hasattr(value, "tobytes") and hasattr(value, "shape"):
            array = np.asarray(value)
            if not array.dtype.hasobject:
                return [kind, str(array.dtype), list(array.shape), _digest(array.tobytes())]
            return [kind, array.tolist()]
    except Exception:  # a file that cannot be read, a decoder of the user's own
        return [kind, "unreadable"]
    text = str(value)
    if not _ADDRESS.search(text):
        return text
    return [kind, vars(value) if hasattr(value, "__dict__") else _ADDRESS.sub("", text)]


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def prompt_template(text: str) -> str:
    """The prompt with quoted spans, numbers and names masked, cut to 160 characters."""
    masked = text[-2_000:]
    for pattern, replacement in _MASKS:
        masked = pattern.sub(replacement, masked)
    return " ".join(masked.split())[:160]


def template_name(prompt: Any, common: Collection[str] | None = None) -> str:
    """``template-`` and a short hash of the last user message with its particulars masked; with ``common`` every run of
    other words is masked too."""
    words = template_words(prompt)
    if common is not None:
        words = [word if word in common else "«…»" for word in words]
        words = [word for at, word in enumerate(words) if word != "«…»" or at == 0 or words[at - 1] != "«…»"]
    digest = hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"template-{digest}"


def template_words(prompt: Any) -> list[str]:
    """The words of the last user message with its particulars masked."""
    return prompt_template(last_user_text(prompt)).split()


def last_user_text(prompt: Any) -> str:
    """A prompt that is text as it is; of a conversation the text of the last user message."""
    if isinstance(prompt, str):
        return prompt
    users = [message for message in prompt or () if message.get("role") == "user"]
    return text_of(users[-1].get("content")) if users else ""
