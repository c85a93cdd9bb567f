"""A probe as one HTML file that needs nothing else, not even scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import rlmon.report.page as page
from rlmon.audit.clauses import percent
from rlmon.printable import one_line
from rlmon.probing.judging import Example
from rlmon.probing.probe import Probe
from rlmon.probing.telling import HEADS, INTERVALS, advice, facts, moved, rows
from rlmon.records import VERDICT_WORDS, Status

TEXT_CHARACTERS = 1_500
"""Of a prompt or a completion that is shown."""


def html(found: Probe) -> str:
    """The page as text. Every text of a model in it is escaped, and none is part of an attribute."""
    judged = found.judged
    all_of = [sum(counts) for counts in zip(*judged.formats.values(), strict=True)]
    shares = [
        (f'<th scope="row">{_text(name)}</th>', *(
            _bar(letter, head, count, whole)
            for letter, head, count, whole in zip("ab", HEADS[1:3], counts, all_of, strict=True)
        ))
        for name, counts in judged.formats.items()
    ]  # fmt: skip
    stated = [
        (f'<th scope="row">{_text(cells[0])}<small>{_text(one.line)}</small></th>',
         *map(_cell, HEADS[1:4], cells[1:4], ("n", "n", "")),
         f'<td>{_badge(one.status)} {_text(one.word)}</td>')
        for one, cells in rows(found)
    ]  # fmt: skip
    said = advice(found)
    body = page.fill(
        (page.HERE / "assets" / "probe.html").read_text(encoding="utf-8"),
        {
            "tone": judged.verdict,
            "word": VERDICT_WORDS[judged.verdict],
            "headline": _text(judged.headline),
            "facts": "".join(f"<div><dt>{name}</dt><dd>{_text(text)}</dd></div>" for name, text in facts(found)),
            "intervals": _text(INTERVALS),
            "statements": _table(HEADS, stated),
            "advice": f'<p class="advice">{_text(said)}</p>' if said else "",
            "moved": f'<ul class="notes">{"".join(f"<li>{_text(moved(one))}</li>" for one in judged.moved)}</ul>',
            "formats": _table(("format", *HEADS[1:3]), shares),
            "examples": "".join(map(_example, judged.examples)),
        },
    )
    return page.render(
        title=f"rlmon probe: {VERDICT_WORDS[judged.verdict]}",
        body=body,
        data={},
        styles=("assets/page.css", "assets/audit.css", "assets/compare.css", "assets/probe.css"),
        scripts=(),
    )


def _text(text: str) -> str:
    return escape(one_line(text, 2_000))


def _cell(head: str, text: str, kind: str) -> str:
    return f'<td class="{kind}" data-head="{head}">{_text(text)}</td>'


def _badge(status: Status | None) -> str:
    return "" if status is None else f'<span class="badge {status}">{status.upper()}</span>'


def _bar(letter: str, head: str, count: int, whole: int) -> str:
    share = count / whole
    drawn = f'<span class="share-bar" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></span>'
    return f'<td class="of-{letter}" data-head="{head}">{drawn}{percent(share)} ({count} of {whole})</td>'


def _table(heads: Iterable[str], cells: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _example(example: Example) -> str:
    sides = "".join(
        f'<div class="side-card of-{letter}"><h3>{name}</h3>{"".join(map(_pre, texts))}</div>'
        for letter, name, texts in (("a", "base", example.base), ("b", "checkpoint", example.checkpoint))
    )
    return f'<article class="check">{_pre(example.prompt)}<div class="two">{sides}</div></article>'


def _pre(text: str) -> str:
    lines = text[:TEXT_CHARACTERS].split("\n")
    cut = "…" if len(text) > TEXT_CHARACTERS else ""
    return f"<pre>{chr(10).join(escape(one_line(line, 2_000)) for line in lines)}{cut}</pre>"
