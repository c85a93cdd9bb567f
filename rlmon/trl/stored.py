"""A dataset's columns as they are stored, read without running code of the user's or decoding anything.

Looking at a dataset by ``dataset[i]`` runs transforms (which may draw random numbers, and so change the run), decodes
images and audio (which may be slow, or missing for a row that is never drawn), or calls a class of the user's own.
Watching must not: what is not plainly in the Arrow table is not looked at.
"""

from __future__ import annotations

import sys
from typing import Any


class StoredColumn:
    """The values of one column, by row, as ``dataset[i][name]`` would give them."""

    def __init__(self, values: Any, rows: Any) -> None:
        self._values, self._rows = values, rows

    def __len__(self) -> int:
        return len(self._values if self._rows is None else self._rows)

    def __getitem__(self, row: int) -> Any:
        return self._values[row if self._rows is None else self._rows[row].as_py()].as_py()


def stored_column(dataset: Any, name: str) -> StoredColumn | None:
    """Column ``name`` of a ``datasets.Dataset``; ``None`` where what it stores is not what its rows show, and for any
    other kind of dataset. Never raises."""
    library = sys.modules.get("datasets")
    try:
        if library is None or not shows_what_it_stores(dataset) or name not in dataset.column_names:
            return None
        shown = dataset.format
        if name not in shown["columns"] and not shown["output_all_columns"]:
            return None
        if not _is_plain(library, dataset.features[name]):
            return None
        indices = dataset._indices
        return StoredColumn(dataset.data.column(name), None if indices is None else indices.column(0))
    except Exception:  # another version of the library: as good as a dataset that cannot be read
        return None


def shows_what_it_stores(dataset: Any) -> bool:
    """Whether this is a ``datasets.Dataset`` whose rows no code of the user's makes: no transform, no other format, no
    subclass with a ``__getitem__`` of its own."""
    library = sys.modules.get("datasets")
    if library is None or not isinstance(dataset, library.Dataset):
        return False
    kind, stock = type(dataset), library.Dataset
    own = any(getattr(kind, name) is not getattr(stock, name) for name in ("__getitem__", "__getitems__", "format"))
    return not own and dataset.format["type"] is None


def _is_plain(library: Any, feature: Any) -> bool:
    """Whether values of this feature are shown as they are stored: numbers and texts, in lists and mappings."""
    if isinstance(feature, dict):
        return all(_is_plain(library, inner) for inner in feature.values())
    if isinstance(feature, list | tuple):
        return all(_is_plain(library, inner) for inner in feature)
    if type(feature).__name__ in ("List", "LargeList", "Sequence"):
        return _is_plain(library, feature.feature)
    return isinstance(feature, library.Value | library.ClassLabel)
