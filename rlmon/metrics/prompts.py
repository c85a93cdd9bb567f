"""Prompts and completions, as trainers and logs hold them, turned into identity, text and template."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

SOURCE_COLUMNS = ("task", "data_source", "dataset", "source", "language")
"""Columns that say which stratum of the data mix a row belongs to; the first present one is taken."""

_MASKS = (
    (re.compile(r"\"[^\"\n]{0,200}\"|“[^”\n]{0,200}”|`[^`\n]{0,200}`"), "«q»"),
    (re.compile(r"\d+(?:[.,]\d+)*"), "«n»"),
    (re.compile(r"(?<![.!?\n] )(?<!^)\b[A-Z][a-z]+\b|^[A-Z][a-z]+(?= (?:has|had|is|was|buys|gets|wants|'s))"), "«w»"),
)


def text_of(content: Any) -> str:
    """The text of one message's content: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)


def render_prompt(prompt: Any) -> str:
    """A prompt as text; a conversation becomes one ``role: content`` paragraph per message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role', '?')}: {text_of(message.get('content'))}" for message in prompt)


def render_completion(completion: Any) -> str:
    """What the model itself wrote: assistant messages in order, tool results left out."""
    if isinstance(completion, str):
        return completion
    parts = []
    for message in completion:
        if message.get("role", "assistant") != "assistant":
            continue
        reasoning = message.get("reasoning_content")
        if reasoning:
            parts.append(f"<think>{text_of(reasoning)}</think>")
        parts.append(text_of(message.get("content")))
    return "\n".join(parts)


def prompt_identity(prompt: Any) -> str:
    """Hash of the canonical prompt, equal across epochs, ranks and resumes."""
    canonical = json.dumps(prompt, sort_keys=True, ensure_ascii=True, default=str, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=12).hexdigest()


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
