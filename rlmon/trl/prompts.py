"""Which stratum of the data mix a dataset row belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlmon.errors import ConfigError
from rlmon.metrics.prompts import SOURCE_COLUMNS, last_user_text, template_name, template_words
from rlmon.trl.stored import shows_what_it_stores, stored_column

Exchange = Callable[[list[str]], list[str]]
"""The lists of all ranks as one, in rank order."""


class SourceMap:
    """Which stratum of the data mix a dataset row belongs to; decided once, equal on every rank and resume.

    A column (the one asked for, else the first present of ``SOURCE_COLUMNS``) is taken as it is, its 63 most
    frequent values by name and the rest as ``other``. Without one, prompts are stratified by template, but only
    by templates so frequent that a round is expected to hold four prompts of each: detectors compare prompts
    within a source, and a source with one prompt a round cannot be compared with itself. Where no template is as
    frequent as that, words that few prompts share are masked as well, and it is tried once more.

    A dataset is only looked at where that runs no code of the user's (``rlmon.trl.stored``). Elsewhere the rows of
    the first training round decide (``learn``), those of all ranks together.
    """

    LIMIT = 64
    COMMON = 0.2
    """Share of prompts that must hold a word for it to be part of a template, at the second try."""
    LOOKED_AT = 4_096
    """Rows of a dataset that are read, evenly spaced."""

    def __init__(
        self,
        column: str | None,
        names: frozenset[str],
        pooled: str,
        common: frozenset[str] | None = None,
        *,
        learning: bool = False,
    ) -> None:
        self.column = column
        self.names = names
        self.pooled = pooled
        self.common = common
        """Words that are part of templates; ``None``: all."""
        self.learning = learning
        """Whether the first training round is still to decide."""
        self.learned = learning
        """Whether it is the rows that were drawn that decide, not the dataset."""

    @classmethod
    def build(cls, dataset: Any, column: str | None, prompts_per_round: int) -> SourceMap:
        """From at most 4,096 evenly spaced rows of ``dataset``, as they are stored; no code of the user's is run.

        Raises ``ConfigError`` where ``column`` is asked for and its rows have none of that name.
        """
        columns = _column_names(dataset)
        if column is not None and columns and column not in columns and shows_what_it_stores(dataset):
            close = ", ".join(columns)
            raise ConfigError(
                f"rlmon_source_column is {column!r}, but the training dataset has the columns {close}. Name one of "
                "them, or leave the setting out."
            )
        chosen = column or next((name for name in SOURCE_COLUMNS if name in columns), None)
        if chosen is not None:
            labels = stored_column(dataset, chosen)
            if labels is None:
                return cls(chosen, frozenset(), "other")
            counts = Counter(_label(labels[i]) for i in spread(len(labels)))
            names = [name for name, _ in counts.most_common(cls.LIMIT if len(counts) <= cls.LIMIT else cls.LIMIT - 1)]
            return cls(chosen, frozenset(names), "other")
        prompts = stored_column(dataset, "prompt")
        if prompts is None:
            return cls(None, frozenset(), "all", learning=dataset is not None)
        return cls.of_prompts([prompts[i] for i in spread(len(prompts))], prompts_per_round)

    @classmethod
    def of_prompts(cls, prompts: Sequence[Any], prompts_per_round: int) -> SourceMap:
        """Strata by template, from a sample of the prompts."""
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

    def learn(self, rows: Sequence[Mapping[str, Any]], exchange: Exchange) -> None:
        """Decide from the first training round: ``rows`` are this rank's, one of each prompt.

        Every rank calls this while it is ``learning``, whatever its rows are like: it exchanges their prompts once.
        Raises what a rank's own rows raised, after all ranks have decided from the others'.
        """
        self.learning = False
        mine: list[str] = []
        failure: Exception | None = None
        try:
            mine = [f"c{name}" for name in SOURCE_COLUMNS if any(name in row for row in rows)]
            mine += [f"p{last_user_text(row.get('prompt', ''))[-2_000:]}" for row in rows]
        except Exception as error:
            failure = error
        told = exchange(mine)
        named = {one[1:] for one in told if one[0] == "c"}
        prompts = [one[1:] for one in told if one[0] == "p"]
        self.column = next((name for name in SOURCE_COLUMNS if name in named), None)
        decided = SourceMap(self.column, frozenset(), "other")
        if self.column is None:
            decided = SourceMap.of_prompts(prompts, len(prompts))
        self.names, self.pooled, self.common = decided.names, decided.pooled, decided.common
        if failure is not None:
            raise failure

    def state(self) -> dict[str, Any] | None:
        """What a resumed run takes up, as JSON types; ``None`` where the dataset itself says it."""
        if not self.learned or self.learning:
            return None
        common = None if self.common is None else sorted(self.common)
        return {"column": self.column, "names": sorted(self.names), "pooled": self.pooled, "common": common}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave. Raises where that is something else."""
        column, names, pooled, common = (state[name] for name in ("column", "names", "pooled", "common"))
        texts = [pooled, *names, *(common or ()), *([] if column is None else [column])]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name of a source is no text")
        if not self.learned:
            return
        self.column, self.names, self.pooled = column, frozenset(names), pooled
        self.common = None if common is None else frozenset(common)
        self.learning = False

    def source_of(self, row: Mapping[str, Any]) -> str:
        """Name of the row's stratum, at most 80 characters."""
        if self.column is not None:
            label = _label(row.get(self.column))
            return label if label in self.names or not self.names else self.pooled
        if not self.names:
            return "all"
        name = template_name(row.get("prompt", ""), self.common)
        return name if name in self.names else self.pooled

    @property
    def capability(self) -> dict[str, str]:
        """A row of the capability table."""
        if self.learned:
            reason = (
                "from the rows of the first training round: the dataset's own code makes its rows, and is not run to "
                "look at them"
            )
        elif self.column is not None:
            reason = f"column {self.column} of the dataset"
        elif self.names:
            reason = f"by the prompt's template: {len(self.names)} frequent ones and the rest"
        else:
            reason = "one: no source column, and no template that divides the prompts"
        return {"signal": "source", "status": "yes", "reason": reason}


def spread(size: int) -> range:
    """The rows of a dataset of ``size`` that are looked at."""
    return range(0, size, max(1, -(-size // SourceMap.LOOKED_AT)))


def _column_names(dataset: Any) -> list[str]:
    try:
        return [name for name in dataset.column_names or () if isinstance(name, str)]
    except Exception:  # any other kind of dataset
        return []


def _label(value: Any) -> str:
    if value is None:
        return "unnamed"
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of numpy or torch reads like the number
    return str(value)[:80]
