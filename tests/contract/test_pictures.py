"""Every picture of the docs is shown with words for who does not see it, is small, and can be made again."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.pictures import PICTURES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FIGURES_OF_STUDIES = ("docs/ppo/", "docs/experiments/", "docs/real-runs/")
"""Drawn by ``studies``, with the pages that show them."""


def images(text: str) -> list[tuple[str, str]]:
    """(words, address) of each image of a page."""
    return re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text)


def shown() -> dict[Path, list[str]]:
    """The words beside each picture, by its file."""
    found: dict[Path, list[str]] = {}
    for document in DOCUMENTS:
        for words, address in images(document.read_text(encoding="utf-8")):
            found.setdefault((document.parent / address).resolve(), []).append(words)
    return found


def below_docs() -> set[Path]:
    return {path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg", ".jpg", ".gif", ".webp")}


def test_every_picture_is_shown_and_every_shown_one_is_there() -> None:
    assert set(shown()) == below_docs()


def test_every_picture_has_words_that_say_what_is_seen() -> None:
    assert [(path.name, words) for path, all_words in shown().items() for words in all_words if len(words) < 20] == []


def test_every_picture_is_one_that_the_script_makes_and_none_is_large() -> None:
    ours = {path for path in below_docs() if not path.relative_to(ROOT).as_posix().startswith(FIGURES_OF_STUDIES)}
    assert ours == {ROOT / "docs" / "pictures" / name for name in PICTURES}
    sizes = {path.name: path.stat().st_size for path in ours}
    assert {name: size for name, size in sizes.items() if size >= 150_000} == {}
    assert sum(sizes.values()) < 1_000_000


def test_the_check_of_images_can_fail() -> None:
    assert images("[![a b](c.png)](d.md) ![](e.svg) [f](g.png)") == [("a b", "c.png"), ("", "e.svg")]
