"""Prompts and completions as TRL hands them over, turned into identity and text."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlmon.errors import ConfigError

SOURCE_COLUMNS = ("task", "data_source", "dataset", "source", "language")

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


class SourceMap:
    """Which stratum of the data mix a dataset row belongs to; decided once, equal on every rank and resume.

    A column (the one asked for, else the first present of ``SOURCE_COLUMNS``) is taken as it is, its 63 most
    frequent values by name and the rest as ``other``. Without one, prompts are stratified by template, but only
    by templates so frequent that a round is expected to hold four prompts of each: detectors compare prompts
    within a source, and a source with one prompt a round cannot be compared with itself.
    """

    LIMIT = 64

    def __init__(self, column: str | None, names: frozenset[str], pooled: str) -> None:
        self.column = column
        self.names = names
        self.pooled = pooled

    @classmethod
    def build(cls, dataset: Any, column: str | None, prompts_per_round: int) -> SourceMap:
        """Read at most 4,096 evenly spaced rows of ``dataset`` (none of an iterable one)."""
        columns = list(getattr(dataset, "column_names", None) or ())
        if column is not None and columns and column not in columns:
            close = ", ".join(columns)
            raise ConfigError(
                f"rlmon_source_column is {column!r}, but the training dataset has the columns {close}. Name one of "
                "them, or leave the setting out."
            )
        chosen = column or next((name for name in SOURCE_COLUMNS if name in columns), None)
        try:
            size = len(dataset)
        except TypeError:
            return cls(chosen, frozenset(), "other" if chosen else "all")
        indices = range(0, size, max(1, -(-size // 4_096)))
        if chosen is not None:
            counts = Counter(_label(dataset[i].get(chosen)) for i in indices)
            names = [name for name, _ in counts.most_common(cls.LIMIT if len(counts) <= cls.LIMIT else cls.LIMIT - 1)]
            return cls(chosen, frozenset(names), "other")
        counts = Counter(template_name(dataset[i].get("prompt", "")) for i in indices)
        needed = max(0.05, 4 / max(1, prompts_per_round)) * len(indices)
        frequent = [name for name, count in counts.most_common(cls.LIMIT - 1) if count >= needed]
        return cls(None, frozenset(frequent) if len(counts) > 1 else frozenset(), "other" if frequent else "all")

    def source_of(self, row: Mapping[str, Any]) -> str:
        """Name of the row's stratum, at most 80 characters."""
        if self.column is not None:
            label = _label(row.get(self.column))
            return label if label in self.names or not self.names else self.pooled
        if not self.names:
            return "all"
        name = template_name(row.get("prompt", ""))
        return name if name in self.names else self.pooled


def _label(value: Any) -> str:
    return "unnamed" if value is None else str(value)[:80]


def template_name(prompt: Any) -> str:
    """``template-`` and a short hash of the last user message with its particulars masked."""
    if not isinstance(prompt, str):
        users = [message for message in prompt or () if message.get("role") == "user"]
        prompt = text_of(users[-1].get("content")) if users else ""
    digest = hashlib.blake2b(prompt_template(prompt).encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"template-{digest}"
