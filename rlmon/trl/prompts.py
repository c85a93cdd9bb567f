"""Which stratum of the data mix a dataset row belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlmon.errors import ConfigError
from rlmon.metrics.prompts import SOURCE_COLUMNS, template_name, template_words


class SourceMap:
    """Which stratum of the data mix a dataset row belongs to; decided once, equal on every rank and resume.

    A column (the one asked for, else the first present of ``SOURCE_COLUMNS``) is taken as it is, its 63 most
    frequent values by name and the rest as ``other``. Without one, prompts are stratified by template, but only
    by templates so frequent that a round is expected to hold four prompts of each: detectors compare prompts
    within a source, and a source with one prompt a round cannot be compared with itself. Where no template is as
    frequent as that, words that few prompts share are masked as well, and it is tried once more.
    """

    LIMIT = 64
    COMMON = 0.2
    """Share of prompts that must hold a word for it to be part of a template, at the second try."""

    def __init__(
        self, column: str | None, names: frozenset[str], pooled: str, common: frozenset[str] | None = None
    ) -> None:
        self.column = column
        self.names = names
        self.pooled = pooled
        self.common = common
        """Words that are part of templates; ``None``: all."""

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
        prompts = [dataset[i].get("prompt", "") for i in indices]
        needed = max(0.05, 4 / max(1, prompts_per_round)) * len(prompts)
        shared = Counter(word for prompt in prompts for word in set(template_words(prompt)))
        for common in (None, frozenset(word for word, n in shared.items() if n >= cls.COMMON * len(prompts))):
            counts = Counter(template_name(prompt, common) for prompt in prompts)
            frequent = [name for name, count in counts.most_common(cls.LIMIT - 1) if count >= needed]
            if frequent and len(counts) > 1:
                return cls(None, frozenset(frequent), "other", common)
            if frequent:
                break
        return cls(None, frozenset(), "all")

    def source_of(self, row: Mapping[str, Any]) -> str:
        """Name of the row's stratum, at most 80 characters."""
        if self.column is not None:
            label = _label(row.get(self.column))
            return label if label in self.names or not self.names else self.pooled
        if not self.names:
            return "all"
        name = template_name(row.get("prompt", ""), self.common)
        return name if name in self.names else self.pooled


def _label(value: Any) -> str:
    return "unnamed" if value is None else str(value)[:80]
