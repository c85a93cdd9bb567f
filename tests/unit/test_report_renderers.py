"""An audit in each form: what is said, that it can be read back, and that no text of a run is ever obeyed."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import make_audit
import pytest
from as_asked import answer
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console

from rlmon.acts import entries, fold
from rlmon.audit.result import Audit, Check, Example
from rlmon.printable import one_line
from rlmon.report import as_json, github, junit, markdown, phrases, terminal

MAKERS = [
    make_audit.healthy,
    make_audit.solved,
    make_audit.collapsed,
    make_audit.empty,
    make_audit.one_step,
    make_audit.hostile,
]
Maker = Callable[[], Audit]
# Everything that a terminal, a Markdown or HTML parser, a runner of workflows or an XML parser might take for its own.
NASTY = st.text(
    alphabet=st.sampled_from("ab@#:%/|\\`*_~$![]()<>&'\"-+=1.\n\r\t \x00\x1b\x9b\u202e\u2028\ud800\ufffe,é")
)


def check(**changes: Any) -> Check:
    values: dict[str, Any] = {
        "id": "format-collapse",
        "title": "answer formats keep their number",
        "status": "fail",
        "method": "fold",
        "message": "fell from 4.84 to 1.11",
    }
    return answer(**{**values, **changes})


def sample(text: str | None) -> Example:
    return Example(
        step=1, split="train", prompt_id="p", prompt="?", completion=text, mode="prose", template="t", source="s",
        reward=1.0, advantage=None, label="base",
    )  # fmt: skip


def with_checks(*checks: Check, **changes: Any) -> Audit:
    return dataclasses.replace(make_audit.healthy(), checks=checks, **changes)


def screen(audit: Audit, width: int, *, colour: bool = False, page: str | None = None) -> str:
    stream = io.StringIO()
    system: Any = "truecolor" if colour else None
    console = Console(file=stream, width=width, force_terminal=colour, color_system=system, highlight=False)
    console.print(terminal.render(audit, width=width, page=page))
    return stream.getvalue()


# ---- numbers and words


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (1.0, "1"), (4.844, "4.84"), (0.0123, "0.0123"), (999.6, "1,000"), (18_234.2, "18,234")],
)
def test_numbers_have_three_digits_and_a_missing_one_is_a_dash(value: float | None, shown: str) -> None:
    assert phrases.number(value) == shown


def test_base_to_now_never_invents_a_zero() -> None:
    assert phrases.base_to_now(check(baseline=4.84, value=1.11, unit="modes")) == "4.84 → 1.11 modes"
    assert phrases.base_to_now(check(baseline=4.84, value=None, unit="modes")) == "4.84 → - modes"
    assert phrases.base_to_now(check(value=0.0, unit="values")) == "0 values"
    assert phrases.base_to_now(check()) == ""


# ---- terminal


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("make", MAKERS)
def test_the_screen_fits_and_holds_nothing_that_steers_a_terminal(make: Maker, width: int) -> None:
    for line in screen(make(), width).split("\n"):
        assert cell_len(line) <= width
        assert line.isprintable()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("make", MAKERS)
def test_every_check_is_there_and_the_verdict_is_last(make: Maker, width: int) -> None:
    audit = make()
    text = screen(audit, width, page="out/page.html")
    rows = [line.split()[:2] for line in text.split("\n") if line]
    flat = " ".join(text.split())
    for item in audit.checks:
        if item.status in ("pass", "skip"):
            assert item.id in flat
        else:
            assert [item.status.upper(), item.id] in rows
    assert "Page out/page.html" in flat
    assert flat.endswith(" ".join(f"{phrases.VERDICT_WORDS[audit.verdict]} {one_line(audit.headline)}".split()))


def test_an_event_says_what_was_seen_and_what_to_do() -> None:
    long = sample(f"{'a' * 500}\n</think> \\boxed{{7}}")
    shown = [dataclasses.replace(long, label="base"), dataclasses.replace(sample("x\ny"), label="now")]
    bad = check(first_step=66, alarm_step=88, advice="Set beta above 0; or wait.", examples=shown)
    lines = [line.rstrip() for line in screen(with_checks(bad), 80).split("\n")]
    at = next(
        i for i, line in enumerate(lines) if line.startswith("FAIL From step 66: fell from 4.84 to 1.11; reward ")
    )
    assert lines[at + 1] == "  began at step 66, confirmed at step 88, seen by format-collapse"
    at = lines.index("  base, step 1, prose, reward 1")
    assert lines[at + 1 : at + 7] == [
        f"  │ {'a' * 76}",
        "  │ … 367 characters left out …",
        f"  │ {'a' * 56}\\n</think> \\boxed{{7}}",
        "  now, step 1, prose, reward 1",
        r"  │ x\ny",
        "  → Set beta above 0.",
    ]


def test_an_answer_of_two_lines_is_shown_whole() -> None:
    shown = [dataclasses.replace(sample("a" * 90), label="base"), dataclasses.replace(sample("b"), label="now")]
    lines = screen(with_checks(check(first_step=6, examples=shown)), 80).split("\n")
    at = lines.index(f"  │ {'a' * 76}")
    assert lines[at + 1].rstrip() == f"  │ {'a' * 14}"
    assert not [line for line in lines if "left out" in line]


def test_one_event_is_told_once() -> None:
    pair = [dataclasses.replace(sample(text), label=text) for text in ("base", "now")]
    bad = [check(id=name, advice="Raise beta.", examples=pair) for name in ("format-collapse", "template-collapse")]
    text = screen(with_checks(*bad), 80)
    assert text.count("→ Raise beta.") == 1
    assert text.count("│ now") == 1
    assert text.count("│ the text was not stored") == 0


def test_what_passed_and_what_was_not_judged_is_folded() -> None:
    folded = [check(id=name, status=status) for name, status in (("x", "pass"), ("y", "skip"), ("z", "pass"))]
    lines = [line.rstrip() for line in screen(with_checks(*folded), 80).split("\n")]
    at = lines.index("2 passed  x, z")
    assert lines[at + 1] == "1 not judged  y"


def test_colour_is_the_only_difference_that_colour_makes() -> None:
    plain, coloured = (screen(make_audit.collapsed(), 100, colour=colour) for colour in (False, True))
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


@given(NASTY)
def test_no_text_is_taken_for_markup_or_a_line_of_ours(text: str) -> None:
    audit = with_checks(check(message=f"[red]{text}[/red]", examples=[sample(f"[bold]{text}")]))
    shown = screen(audit, 120)
    assert "[red]" in shown
    assert "│ [bold]" in shown
    assert all(line.isprintable() for line in shown.split("\n"))


# ---- Markdown


def tokens(text: str) -> list[Token]:
    flat = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        flat += [token, *(token.children or [])]
    return flat


def literal(text: str) -> str:
    """The text as a parser shows it, without the invisible spaces."""
    return "".join(t.content for t in tokens(text) if t.type in ("text", "softbreak", "text_special")).replace(
        "\u200b", ""
    )


OURS = re.compile(r"(<details><summary>[^<>]*</summary>|</details>)\n*")


@pytest.mark.parametrize("make", MAKERS)
def test_markdown_holds_no_markup_but_ours(make: Maker) -> None:
    audit = make()
    text = markdown.render(audit)
    found = tokens(text)
    assert not {t.type for t in found} & {"link_open", "image", "html_inline", "code_inline", "code_block", "s_open"}
    assert all(OURS.fullmatch(t.content) for t in found if t.type == "html_block")
    rows = sum(t.type == "tr_open" for t in found)
    judged = sum(c.status != "skip" for c in audit.checks)
    acts = len(entries(fold(audit.actions)))
    assert rows == (judged + 1 if judged else 0) + (acts + 1 if acts else 0)
    assert sum(t.type == "heading_open" for t in found) == 1
    assert all(line.isprintable() or line.replace("\u200b", "").isprintable() for line in text.split("\n"))


def test_markdown_without_its_escapes_would_be_caught() -> None:
    raw = f"text {make_audit.HOSTILE}"
    assert {t.type for t in tokens(raw)} & {"link_open", "image", "html_inline", "code_inline"}


@given(NASTY)
def test_escaped_text_is_shown_literally_in_a_table_cell(text: str) -> None:
    from rlmon.printable import one_line

    table = f"| a | b |\n| --- | --- |\n| x{markdown.escape(text)}y | second |"
    found = tokens(table)
    cells = [t for t in found if t.type == "td_open"]
    assert len(cells) == 2
    assert "".join(literal(table).split()) == "".join(f"abx{one_line(text)}ysecond".split())


@given(NASTY)
def test_nobody_is_mentioned_and_nothing_is_linked(text: str) -> None:
    for escaped in (markdown.escape(text), markdown.escape_html(text)):
        assert not re.search(r"@\w|#\d|://|\bwww\.|GH-\d", escaped, re.IGNORECASE)
    for escaped in (markdown.escape("@octocat #12 GH-3 https://e.example www.e.example me@e.example"),):
        assert not re.search(r"@\w|#\d|://|\bwww\.|GH-\d", escaped)


@example("```\n# out")
@example("a\n``````\nb\n```")
@given(NASTY)
def test_no_completion_closes_its_fence(text: str) -> None:
    found = tokens(f"before\n\n{markdown.fence(sample(text))}\n\nafter")
    assert [t.type for t in found if t.type in ("fence", "paragraph_open")] == [
        "paragraph_open",
        "fence",
        "paragraph_open",
    ]


@example("- a")
@example("+ a")
@example("# a")
@example("1. a")
@example("12) a")
@example("=")
@example("    code")
@given(NASTY)
def test_a_paragraph_that_begins_with_a_text_is_a_paragraph(text: str) -> None:
    types = {t.type for t in tokens(markdown.escape(text))}
    assert types <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special", "softbreak"}


def test_a_comment_is_never_too_long_and_says_what_is_missing() -> None:
    many = [check(id=f"c-{i}", message="x" * 500, examples=[sample("y" * 4_000)] * 2) for i in range(400)]
    text = markdown.render(with_checks(*many))
    assert len(text) <= 65_536
    assert "details are left out" in text
    assert "<details>" not in text


# ---- GitHub


def commands(text: str) -> list[tuple[str, str, str]]:
    """What the runner makes of it: level, title, message; written from the runner's own rules."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"::(\w+) title=([^:,]*)::(.*)", line)
        assert match, line
        title, message = match[2], match[3]
        for code, character in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
            title = title.replace(code, character)
        for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
            message = message.replace(code, character)
        found.append((match[1], title, message))
    return found


@pytest.mark.parametrize("make", MAKERS)
def test_one_annotation_per_check_that_spoke_after_the_verdict(make: Maker) -> None:
    audit = make()
    (level, title, headline), *rest = commands(github.render(audit))
    assert title == f"rlmon: {phrases.VERDICT_WORDS[audit.verdict]}"
    assert level == {"pass": "notice", "warn": "warning", "fail": "error", "insufficient": "warning"}[audit.verdict]
    assert all(line in headline for line in phrases.missing(audit))
    assert bool(phrases.missing(audit)) == (audit.verdict == "insufficient")
    assert phrases.counts(audit) in headline
    levels = {"fail": "error", "error": "error", "warn": "warning", "unsure": "warning", "note": "notice"}
    wanted = [(levels[c.status], c.status) for c in audit.checks if c.status in levels]
    assert sorted(level for level, _, _ in rest) == sorted(level for level, _ in wanted)


@example("%0A%3A%25", "%0A::error::")
@example("a:b,c", "\r\n::error::")
@given(NASTY, NASTY)
def test_a_command_is_one_line_and_reads_back(title: str, message: str) -> None:
    from rlmon.printable import one_line

    text = github.command("error", title, message)
    assert text.count("\n") == 0
    assert commands(text) == [("error", one_line(title, 120), one_line(message))]


# ---- JUnit


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("fail_on", ["never", "warn", "fail"])
def test_junit_counts_what_it_holds(make: Maker, fail_on: Any) -> None:
    audit = make()
    suite = ElementTree.fromstring(junit.render(audit, fail_on=fail_on)).find("testsuite")
    assert suite is not None
    # The verdict stands among the checks; unsure it is skipped, so that no list of results shows it in green.
    verdict = suite.find("testcase[@name='verdict']")
    assert verdict is not None
    assert (verdict.find("skipped") is not None) == (audit.verdict == "insufficient")
    said = [audit.verdict if audit.verdict != "insufficient" else "skip", *(check.status for check in audit.checks)]
    by_status = {status: said.count(status) for status in ("fail", "warn", "skip", "error")}
    failing = {"never": 0, "fail": by_status["fail"], "warn": by_status["fail"] + by_status["warn"]}[fail_on]
    for attribute, tag, amount in (
        ("failures", "failure", failing),
        ("errors", "error", by_status["error"]),
        ("skipped", "skipped", by_status["skip"]),
    ):
        assert int(suite.attrib[attribute]) == len(suite.findall(f"testcase/{tag}")) == amount
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase")) == len(said)


def test_junit_of_several_runs_has_a_suite_each() -> None:
    root = ElementTree.fromstring(junit.render(make_audit.healthy(), make_audit.collapsed()))
    assert len(root.findall("testsuite")) == 2


@given(NASTY)
def test_junit_is_xml_whatever_it_says(text: str) -> None:
    audit = with_checks(
        check(message=text, advice=text, examples=[sample(text)]), check(status="skip", reason=text, message=text)
    )
    ElementTree.fromstring(junit.render(dataclasses.replace(audit, headline=text)).encode("utf-8"))


def test_what_xml_forbids_becomes_a_replacement_character() -> None:
    assert (
        junit.valid("a\x00\x0b\x1b\ud800\ufffe\uffffb\t\n\r\x85\U0010ffff")
        == "a" + "\ufffd" * 6 + "b\t\n\r\x85\U0010ffff"
    )


# ---- JSON


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text.encode("utf-8", "strict"), parse_constant=refuse)


@pytest.mark.parametrize("make", MAKERS)
def test_json_says_what_the_audit_says(make: Maker) -> None:
    audit = make()
    value = strict(as_json.render(audit))
    assert [c["id"] for c in value["checks"]] == [c.id for c in audit.checks]
    assert [c["value"] for c in value["checks"]] == [c.value for c in audit.checks]
    assert value["verdict"] == audit.verdict
    assert strict(as_json.render_array(audit, audit)) == [value, value]


def test_json_survives_settings_and_texts_that_json_has_no_word_for() -> None:
    run = dataclasses.replace(
        make_audit.healthy().run, config={"max_grad_norm": float("inf"), "nan": float("nan"), "half \ud800": {1, 2}}
    )
    value = strict(as_json.render(dataclasses.replace(make_audit.healthy(), run=run)))
    config = value["run"]["config"]
    assert (config["max_grad_norm"], config["nan"]) == (None, None)
    assert config["half \ufffd"] == "{1, 2}"
    for make in MAKERS:
        assert not re.search("[\ud800-\udfff]", json.dumps(strict(as_json.render(make())), ensure_ascii=False))


# ---- acts of a policy


def test_acts_are_one_line_each_the_newest_first_and_acts_on_rows_are_counted() -> None:
    # The alarm is the fail finding's step: the acts on rows are at 1, 4, ... before it, the others one step after it.
    audit = make_audit.collapsed()
    alarm = next(finding["step"] for finding in audit.findings if finding["severity"] == "fail")
    times = len(range(1, alarm, 3))
    lines = [" ".join(line.split()) for line in screen(audit, 200).split("\n")]
    at = next(i for i, line in enumerate(lines) if line.startswith("Interventions"))
    assert lines[at] == (
        f"Interventions {times + 3} acts by 4 rules: {times + 1} applied, 1 dry run, 1 failed; 1 helped"
    )
    assert lines[at + 1 : at + 5] == [
        f"APPLIED step {alarm + 1} kl-budget beta 0 → 0.05 · helped · format-collapse FAIL",
        f"FAILED step {alarm + 1} anchor-dying anchor_weight 0 → 0.05 · format-collapse FAIL: RuntimeError: odd",
        f"WOULD step {alarm + 1} stop-when-lost training: stop · format-collapse FAIL",
        f"APPLIED 1 to {range(1, alarm, 3)[-1]} quarantine-shortcuts {times} times · 1 group of nearly impossible "
        "prompts neutralised",
    ]
    text = markdown.render(audit)
    assert f"| WOULD | {alarm + 1} | stop-when-lost | training: stop |" in text.replace("\u200b", "").replace("\\", "")
    assert "Interventions" not in markdown.render(make_audit.healthy()) + screen(make_audit.healthy(), 120)
