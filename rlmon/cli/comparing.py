"""``rlmon compare``: whether two runs, or two sets of seeds, differ."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from rlmon.cli.auditing import Mapped, Processes, ReaderName, SuccessRule, audited, columns_of
from rlmon.cli.printing import draw, note, say, write


class CompareFormat(str, enum.Enum):
    """How a comparison is printed."""

    rich = "rich"
    json = "json"
    markdown = "markdown"


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, or runs (seeds) separated by commas.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other run, or runs.")],
    more_a: Annotated[list[Path] | None, typer.Option("--a", metavar="PATH", help="One more run of A.")] = None,
    more_b: Annotated[list[Path] | None, typer.Option("--b", metavar="PATH", help="One more run of B.")] = None,
    base: Annotated[Path | None, typer.Option(metavar="RUN", help="A run whose first steps are the base.")] = None,
    form: Annotated[CompareFormat, typer.Option("--format", help="How to print.")] = CompareFormat.rich,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page.")] = None,
    reader: ReaderName = None,
    mapping: Mapped = None,
    success: SuccessRule = None,
    processes: Processes = None,
) -> None:
    """What differs between two runs, or between two sets of seeds: where they part, how they end, what each lost.

    \b
    rlmon compare out/plain out/kl
    rlmon compare out/plain-0,out/plain-1 out/kl-0,out/kl-1 --html compare.html
    rlmon compare out/plain-0 out/kl-0 --a out/plain-1 --b out/kl-1 --base out/base
    """
    import rlmon.report.compare_markdown as compare_markdown
    import rlmon.report.compare_page as compare_page
    import rlmon.report.compare_terminal as compare_terminal
    import rlmon.report.compare_words as compare_words
    from rlmon.audit.comparison import compare as compared

    how = {"reader": reader, "mapping": columns_of(mapping), "success": success, "processes": processes}
    sides = [[*_paths(text), *(more or [])] for text, more in ((a, more_a), (b, more_b))]
    a_audits, b_audits = ([audited(path, **how) for path in side] for side in sides)
    base_audit = None if base is None else audited(base, **how)
    result = compared(a_audits, b_audits, base_audit, compare_words.side_names(*sides))
    if page is not None:
        write(page, compare_page.html(result))
        note(f"The page is {page}.")
    if form is CompareFormat.rich:
        from rich.console import Console

        draw(compare_terminal.render(result, width=Console().width))
    else:
        text = compare_words.json(result) if form is CompareFormat.json else compare_markdown.render(result)
        say(text.rstrip("\n"))


def _paths(text: str) -> list[Path]:
    """``A1,A2`` as paths; a path that exists may hold commas."""
    if Path(text).exists():
        return [Path(text)]
    return [Path(part) for part in text.split(",") if part]
