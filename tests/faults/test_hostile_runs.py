"""Hostile and damaged runs, from end to end: shown as text or refused in one line, in bounded time and memory.

Every test runs ``rlmon audit`` in a process of its own. Warnings are errors in it and a mistake of ours would show its
traceback. What is judged is the output of the process, by parsers of others: ``html.parser``, ``markdown_it``,
``xml.etree``, ``json``.
"""

from __future__ import annotations

import collections
import gzip
import html.parser
import json
import os
import pickle
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import hostile
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import FORMATS, Left
from markdown_it import MarkdownIt

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "foreign"
PAYLOADS: Mapping[str, str] = {
    "html": "<img src=x onerror=alert(1)></textarea></div><!-- &lt;b&gt;",
    "script": "</script><script>alert(1)</script><!--<script>",
    "ansi": "\x1b]0;owned\x07\x1b[2J\x1b[1;31mred\x1b[0m\x9b31m\r\x08\x1b[8m",
    "rich-markup": "[bold red]x[/bold red][/][link=http://evil.example]y[/link][not closed",
    "markdown": "| a | b |\n# Owned\n```\n![i](http://evil.example/x.png) [l](http://evil.example) <b>@user</b> `c` #1",
    "workflow-command": "x\n::error title=owned::owned\n%0A::set-output name=a::b\n##[error]owned",
    "csv-formula": "=cmd|' /C calc'!A0",
    "direction-and-surrogates": "\u202eevil\u2066 \ud800 \udfff \x00 \u2028line\u2029",
    "keys-of-javascript": "__proto__",
    "xml": "]]><x/>&quot;\ufffe",
}
IN_NAMES = {"script", "ansi", "workflow-command"}
"""Payloads tried in names and keys too whenever the tests run; the others only in the long run."""
DRAWN = {"polygon", "line", "title", "span"}
"""Tags of the parts of a picture and of its legend."""
SHOWN = "RATHER-LONG-WORD"
"""Put beside the payload, so that it is known whether the text came out at all."""

Audit = Callable[..., Left]


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """``audit(path, "--format", "json")``: what is left of it, after time, memory and manners were looked at."""

    def run(path: Path | str, *options: str | Path, **environment: str) -> Left:
        left = hostile.run("audit", path, *options, folder=tmp_path, **environment)
        assert left.code in (0, 1, 2), left
        assert left.processor_seconds < hostile.PROCESSOR_SECONDS
        assert left.resident_bytes < hostile.RESIDENT_BYTES
        assert "Traceback" not in left.err
        assert "mistake of rlmon" not in left.err
        assert unprintable(left.err) == set()
        if left.code == 2:
            assert left.out == ""
            assert re.fullmatch(r"rlmon: [^\n]+\n", left.err)
        else:
            assert re.fullmatch(r"(rlmon: [^\n]+: unsure, [^\n]+\n)?", left.err)
            assert left.out
        return left

    return run


def unprintable(text: str) -> set[str]:
    return {character for character in text if not character.isprintable() and character != "\n"}


def as_json(left: Left) -> dict[str, Any]:
    def no(constant: str) -> Any:
        raise AssertionError(f"{constant} in JSON")

    assert left.code in (0, 1), left.err
    found: dict[str, Any] = json.loads(left.out, parse_constant=no)
    return found


def check_of(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(check for check in found["checks"] if check["id"] == name)


class Tags(html.parser.HTMLParser):
    """Start tags of a page with their attributes, and the texts of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.scripts: list[str] = []
        self.comments: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def markdown_shape(text: str) -> dict[str, int]:
    """What a reader of Markdown would see in it beside words: number of headings, tables, links, pictures, tags."""
    parser = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable(["table", "strikethrough"])
    shape: collections.Counter[str] = collections.Counter()
    for token in parser.parse(text):
        if token.type in ("heading_open", "table_open", "html_block", "hr", "code_block", "blockquote_open"):
            shape[token.type] += 1
        shape.update(f"<{tag}" for tag in re.findall(r"<(\w+)", token.content if token.type == "html_block" else ""))
        for part in token.children or ():
            if part.type in ("link_open", "image", "html_inline", "code_inline"):
                shape[part.type] += 1
    return dict(shape)


def source_of(kind: str, folder: Path, payload: str) -> Path:
    """The run with the payload in prompts, completions and sources, and as far as they go in names and keys."""
    if kind == "jsonl":
        return hostile.write_lines(folder / "rows.jsonl", hostile.rows(payload))
    name = re.sub(r"[/\x00\ud800-\udfff]", "", payload)[:150]
    return hostile.write_trl(folder / name, payload, reward_name=payload.replace("\x00", ""))


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Shapes of the outputs for runs of harmless words: what no payload may change."""
    shapes: dict[str, Any] = {}
    for kind in ("jsonl", "trl"):
        folder = tmp_path_factory.mktemp("benign")
        run = source_of(kind, folder, "word")
        page = folder / "page.html"
        lefts = {form: hostile.run("audit", run, "--format", form, "--html", page, folder=folder) for form in FORMATS}
        assert all(left.code in (0, 1) for left in lefts.values()), lefts
        shapes[kind] = {
            "html": Tags(page.read_text(encoding="utf-8")).tags,
            "json": set(json.loads(lefts["json"].out)),
            "junit": [element.tag for element in ElementTree.fromstring(lefts["junit"].out).iter()],
            "markdown": markdown_shape(lefts["markdown"].out),
        }
    return shapes


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "jsonl") for name in PAYLOADS]
    + [pytest.param(name, "trl", marks=[] if name in IN_NAMES else [pytest.mark.slow]) for name in PAYLOADS],
)
def test_hostile_text_stays_text(name: str, kind: str, audit: Audit, tmp_path: Path, benign: Mapping[str, Any]) -> None:
    payload = f"{SHOWN} {PAYLOADS[name]}"
    # By its name alone, as somebody would type it in the folder: the outputs show all of it.
    run, page = source_of(kind, tmp_path, payload).name, tmp_path / "page.html"
    left = {
        "rich": audit(run, "--format", "rich", "--html", page),
        **{form: audit(run, "--format", form) for form in FORMATS[1:]},
    }
    shape = benign[kind]

    for form in ("rich", "json", "junit", "github"):
        assert unprintable(left[form].out) == set()
    assert unprintable(left["markdown"].out) <= {"\u200b"}

    found = as_json(left["json"])
    assert set(found) == shape["json"]
    assert found["run"]["completions"] == hostile.STEPS * hostile.PROMPTS * hostile.SIZE

    # JUnit: the same elements, unless a check came out otherwise.
    junit = ElementTree.fromstring(left["junit"].out)
    assert {element.tag for element in junit.iter()} <= {*shape["junit"], "failure", "skipped", "system-out", "error"}
    assert len(junit.findall(".//testcase")) == shape["junit"].count("testcase")

    # GitHub: every line is a command of ours, and there is none of the payload's.
    lines = left["github"].out.splitlines()
    assert all(re.match(r"::(notice|warning|error) title=rlmon%3A ", line) for line in lines)
    assert "%0A" not in left["github"].out

    # Markdown: no link, picture or tag beside our own.
    markdown = markdown_shape(left["markdown"].out)
    assert markdown.keys() <= shape["markdown"].keys() | {"table_open"}
    assert {key for key in markdown if key.startswith("<")} <= {"<details", "<summary"}
    assert "evil.example/" not in re.sub(r"(`{3,})text\n.*?\n\1", "", left["markdown"].out, flags=re.DOTALL)

    # The page: the same tags in the same order, nothing after the data that could leave it, and the text is there.
    text = page.read_text(encoding="utf-8")
    read = Tags(text)
    # A picture has a part for each format that there is; beside that no tag depends on the texts.
    assert set(read.tags) <= set(shape["html"])
    assert [tag for tag in read.tags if tag[0] not in DRAWN] == [tag for tag in shape["html"] if tag[0] not in DRAWN]
    assert read.comments == []
    data = [script for script in read.scripts if SHOWN in script]
    assert len(data) == 1
    assert "<" not in data[0]
    assert json.loads(data[0])["texts"]


def test_a_payload_on_a_colour_terminal_paints_nothing(audit: Audit, tmp_path: Path) -> None:
    run = source_of("jsonl", tmp_path, PAYLOADS["ansi"])
    left = hostile.run("audit", run, folder=tmp_path, FORCE_COLOR="1", COLUMNS="100")
    assert left.code in (0, 1)
    assert "\x1b[" in left.out  # ours
    assert unprintable(re.sub(r"\x1b\[[0-9;]*m", "", left.out)) == set()
    assert "\x1b[8m" not in left.out


def test_a_csv_formula_is_a_word(audit: Audit, tmp_path: Path) -> None:
    rows = hostile.rows(PAYLOADS["csv-formula"])
    lines = ["step,prompt,completion,reward"]
    lines += [f'{row["step"]},"{row["prompt"]}","=1+{row["step"]}",{row["reward"]}' for row in rows]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    page = tmp_path / "page.html"
    found = as_json(audit(tmp_path / "rows.csv", "--format", "json", "--html", page))
    assert found["run"]["completions"] == len(rows)
    # 1+23 was not computed.
    assert '"=1+23"' in page.read_text(encoding="utf-8")


# ---- what does not fit


@pytest.mark.parametrize(
    "piece",
    ["a", "\\boxed{", "\ud83d"]
    + [
        pytest.param(piece, marks=pytest.mark.slow) for piece in ("<think>", "```", "{", "1 ", '"', "\n", "é", "def f(")
    ],
)
def test_a_completion_of_ten_megabytes(piece: str, audit: Audit, tmp_path: Path) -> None:
    rows = hostile.rows("sum")
    for at in (0, 200, len(rows) - 1):
        rows[at]["completion"] = piece * (10_000_000 // len(piece))
    run, page = hostile.write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "page.html"
    found = as_json(audit(run, "--format", "json", "--html", page))
    assert (found["run"]["completions"], found["run"]["coverage"]["damaged_rows"]) == (len(rows), 0)
    assert page.stat().st_size < 3_000_000


def test_two_megabytes_in_every_format(audit: Audit, tmp_path: Path) -> None:
    rows = hostile.rows("sum")
    rows[-1]["completion"] = rows[0]["completion"] = rows[0]["prompt"] = "a <b>" * 400_000
    run = hostile.write_lines(tmp_path / "rows.jsonl", rows)
    for form in FORMATS:
        assert len(audit(run, "--format", form).out) < 200_000


def test_bytes_that_are_no_utf8(audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_lines(tmp_path / "rows.jsonl", hostile.rows("sum"))
    run.write_bytes(run.read_bytes().replace(b"answer", b"an\xff\xc0\xaf\xed\xa0\x80swer"))
    page = tmp_path / "page.html"
    found = as_json(audit(run, "--format", "json", "--html", page))
    # A damaged byte is a damaged character and no lost row.
    assert (found["run"]["completions"], found["run"]["coverage"]["damaged_rows"]) == (384, 0)
    assert "\\ufffdswer" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"\xff\xfe" * 50_000, b"\0" * 1_000_000, bytes(range(256)) * 400, b"", b"\n" * 9])
def test_a_file_of_nothing_readable(content: bytes, audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert audit(tmp_path / "rows.jsonl").code == 2


@pytest.mark.parametrize("kind", ["jsonl", "trl"])
def test_rewards_that_are_no_numbers(kind: str, audit: Audit, tmp_path: Path) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0.0, 1.0]
    run = tmp_path / "run"
    if kind == "jsonl":
        run = hostile.write_lines(tmp_path / "rows.jsonl", hostile.rows("sum", lambda row: values[row % 7]))
    else:
        hostile.write_trl(run)
        for file in sorted((run / "completions").iterdir()):
            table = pq.read_table(file)
            rewards = pa.array([values[row % 7] for row in range(len(table))])
            pq.write_table(table.set_column(3, "reward_func", rewards), file)
        state = json.loads((run / "trainer_state.json").read_text())
        for entry, value in zip(state["log_history"], values * 4, strict=False):
            entry.update({"reward": value, "entropy": -value, "kl": value, "rewards/reward_func/mean": value})
        (run / "trainer_state.json").write_text(json.dumps(state))
    for form in FORMATS:
        left = audit(run, "--format", form)
        assert left.code == 1
        if form == "json":
            found = as_json(left)
            check = check_of(found, "non-finite")
            assert check["status"] == "fail"
            if kind == "jsonl":
                # At step 0, where it is seen first: of 16 rows the 5th, 6th, 12th and 13th are finite. A value beyond
                # float32 counts as infinite: there it is, for the trainer.
                assert (check["first_step"], check["value"]) == (0, 12)


STEPS: Mapping[str, tuple[Callable[[int], Any], int]] = {
    # How a step is written, and how many of the 384 rows have one that can be.
    "negative": (lambda step: -step - 1, 0),
    "half negative": (lambda step: step if step % 2 else -step, 12 * 16 + 16),
    "duplicate": (lambda step: step % 3, 384),
    "backwards": (lambda step: 100 - step, 384),
    "2**63": (lambda step: 2**63 + step, 0),
    "2**63 once": (lambda step: 2**63 if step == 5 else step, 23 * 16),
    "below 2**53": (lambda step: 2**53 - 24 + step, 384),
    "far apart": (lambda step: step * 10**14, 384),
    "10**300": (lambda step: 10**300 + step, 0),
    "fractions": (lambda step: step + 0.5, 0),
    "NaN": (lambda _: float("nan"), 0),
    "null": (lambda _: None, 0),
    "text": (lambda step: f"{step}", 384),
    "objects": (lambda step: {"__proto__": step}, 0),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_out_of_range_or_order(name: str, audit: Audit, tmp_path: Path) -> None:
    write, usable = STEPS[name]
    rows = [row | {"step": write(row["step"])} for row in hostile.rows("sum")]
    left = audit(hostile.write_lines(tmp_path / "rows.jsonl", rows), "--format", "json")
    if not usable:
        assert left.code == 2
        return
    coverage = as_json(left)["run"]["coverage"]
    assert (coverage["rows"], coverage["damaged_rows"]) == (usable, 384 - usable)


def test_steps_of_a_trainer_state_out_of_range(audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_trl(tmp_path / "run")
    state = json.loads((run / "trainer_state.json").read_text())
    odd = [-1, 2**63, 2**70, 10**400, float("inf"), None, "x", [1], 1.5, True, 10**5000]
    texts = []
    for at, entry in enumerate(state["log_history"]):
        # 10**5000 has more digits than Python reads.
        texts.append(json.dumps(entry | {"step": "STEP"}).replace('"STEP"', _dumped(odd[at % len(odd)])))
    huge = _dumped(10**400)
    (run / "trainer_state.json").write_text(
        f'{{"global_step": {huge}, "max_steps": {huge}, "eval_steps": {huge}, "logging_steps": {huge}, '
        f'"num_generations": {huge}, "log_history": [{", ".join(texts)}]}}'
    )
    completions = run / "completions"
    for far in ("999999999999999", "9223372036854775808"):
        (completions / f"completions_{far}.parquet").write_bytes(
            (completions / "completions_00001.parquet").read_bytes()
        )
    # 24 files, and one more with a step of 15 digits; the one of 19 digits is none of TRL's.
    assert as_json(audit(run, "--format", "json"))["run"]["completions"] == 25 * 16


def _dumped(value: Any) -> str:
    return "1" + "0" * 5000 if value == 10**5000 else json.dumps(value)


@pytest.mark.parametrize(
    ("missing", "code"), [("prompt", 1), ("completion", 2), ("reward", 1), ("step", 0), ("task", 1)]
)
def test_missing_columns(missing: str, code: int, audit: Audit, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != missing} for row in hostile.rows("sum")]
    left = audit(hostile.write_lines(tmp_path / "rows.jsonl", rows), "--format", "json")
    assert left.code == code
    if missing == "completion":
        assert "--map" in left.err
    else:
        skipped = [check for check in as_json(left)["checks"] if check["status"] == "skip"]
        assert all(check["reason"] for check in skipped)
        assert skipped or missing == "task"


@pytest.mark.parametrize(
    "columns",
    [{}, {"other": [1]}, {"prompt": [None], "completion": [None]}, {"prompt": [{"a": 1}], "completion": [[1, 2]]}],
)
def test_parquet_of_other_columns(columns: dict[str, Any], audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_trl(tmp_path / "run")
    for file in sorted((run / "completions").iterdir()):
        pq.write_table(pa.table(columns), file)
    as_json(audit(run, "--format", "json"))


def test_parquet_with_one_name_twice(audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_trl(tmp_path / "run")
    file = run / "completions" / "completions_00003.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("completion", table["prompt"]), file)
    found = as_json(audit(run, "--format", "json"))
    assert (found["run"]["coverage"]["unreadable_files"], found["run"]["completions"]) == (1, 23 * 16)


# ---- damage


def test_truncated_parquet(audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_trl(tmp_path / "run")
    files = sorted((run / "completions").iterdir())
    whole = files[0].read_bytes()
    damage = [b"", b"PAR1", whole[: len(whole) // 2], whole[:-4], whole[4:], b"PAR1" + b"\xff" * 64 + b"PAR1"]
    for file, content in zip(files, damage, strict=False):
        file.write_bytes(content)
    for form in FORMATS:
        left = audit(run, "--format", form)
        if form == "json":
            coverage = as_json(left)["run"]["coverage"]
            assert (coverage["unreadable_files"], coverage["rows"]) == (6, 18 * 16)
    for file in files:
        file.write_bytes(whole[:-9])
    (run / "trainer_state.json").unlink()
    assert audit(run).code == 2


def test_an_empty_directory(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for form in FORMATS:
        left = audit(tmp_path / "empty", "--format", form)
        assert left.code == 2
        assert "is empty" in left.err


@pytest.mark.parametrize("path", ["nothing", "-", "a" * 5_000, "..::x", "\u202e\x1b[2J"])
def test_nothing_there(path: str, audit: Audit) -> None:
    assert audit(f"./{path}").code == 2


def write_bomb(path: Path, unit: bytes, times: int) -> None:
    head = b"".join(json.dumps(row).encode() + b"\n" for row in hostile.rows("sum"))
    if path.suffix == ".gz":
        with gzip.open(path, "wb", 9) as packed:
            packed.write(head)
            for _ in range(times):
                packed.write(unit)
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as packed:
            packed.write(head)
            for _ in range(times):
                packed.write(unit)


@pytest.mark.parametrize(
    ("unit", "packing"),
    [
        pytest.param(b"\0" * 1_000_000, "gz", id="zeros-gz"),
        pytest.param(b"\0" * 1_000_000, "zst", id="zeros-zst"),
        pytest.param(b"\n" * 1_000_000, "zst", id="lines-zst"),
        pytest.param(b"\n" * 1_000_000, "gz", id="lines-gz", marks=pytest.mark.slow),
        pytest.param(b"{}\n" * 333_333, "gz", id="objects-gz", marks=pytest.mark.slow),
        pytest.param(b"{}\n" * 333_333, "zst", id="objects-zst", marks=pytest.mark.slow),
    ],
)
def test_a_zip_bomb(unit: bytes, packing: str, audit: Audit, tmp_path: Path) -> None:
    bomb = tmp_path / f"rows.jsonl.{packing}"
    write_bomb(bomb, unit, 600)
    assert bomb.stat().st_size < 1_000_000
    found = as_json(audit(bomb, "--format", "json"))
    # What stood before it was read, and that it was not read on is said.
    assert (found["run"]["completions"], found["run"]["coverage"]["unreadable_files"]) == (384, 1)


@pytest.mark.parametrize("content", [b"[1," * 300_000, b"{}," * 300_000], ids=["nested", "many"])
def test_a_zip_bomb_of_one_json_value(content: bytes, audit: Audit, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.json.gz", "wb", 9) as packed:
        packed.write(b"[")
        for _ in range(400):
            packed.write(content)
    assert audit(tmp_path / "rows.json.gz").code == 2


def test_json_that_would_fill_the_memory(audit: Audit, tmp_path: Path) -> None:
    # 20 million objects in 60 MB: 1.4 GB as Python objects.
    (tmp_path / "rows.json").write_bytes(b"[" + b"{}," * 20_000_000 + b"{}]")
    assert audit(tmp_path / "rows.json").code == 2


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_deeply_nested_json(opening: str, audit: Audit, tmp_path: Path) -> None:
    deep = opening * 100_000
    rows = hostile.rows("sum")
    run = hostile.write_lines(tmp_path / "rows.jsonl", rows)
    run.write_text(run.read_text() + deep + "\n" + '{"step": 1, "completion": ' + deep + "}\n")
    coverage = as_json(audit(run, "--format", "json"))["run"]["coverage"]
    assert (coverage["rows"], coverage["damaged_rows"]) == (384, 2)
    state = hostile.write_trl(tmp_path / "run")
    (state / "trainer_state.json").write_text('{"log_history": ' + deep)
    assert "could not be read" in " ".join(as_json(audit(state, "--format", "json"))["run"]["notes"])


@pytest.mark.parametrize(("mebibytes", "damaged"), [(64, 0), (100, 1)])
def test_a_line_of_64_megabytes(mebibytes: int, damaged: int, audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_lines(tmp_path / "rows.jsonl", hostile.rows("sum"))
    last = json.dumps(hostile.rows("sum")[-1]) + "\n"
    with run.open("a") as file:
        file.write('{"step": 3, "completion": "')
        for _ in range(mebibytes):
            file.write("a" * (1 << 20))
        file.write('"}\n')
        file.write(last)
    coverage = as_json(audit(run, "--format", "json"))["run"]["coverage"]
    # What stands behind a line that is passed over is read again.
    assert (coverage["rows"], coverage["damaged_rows"]) == (386 - damaged, damaged)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> bytes:
    return varint((value << 1) ^ (value >> 63))


def with_claimed_rows(content: bytes, rows: int, claimed: int) -> bytes:
    """The Parquet file with another number of rows wherever its footer has it (a Thrift integer)."""
    size = struct.unpack("<I", content[-8:-4])[0]
    body, footer = content[: -8 - size], content[-8 - size : -8]
    assert zigzag(rows) in footer
    footer = footer.replace(zigzag(rows), zigzag(claimed))
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


def test_parquet_that_claims_a_billion_rows(audit: Audit, tmp_path: Path) -> None:
    rows = 5_003  # a number whose bytes stand for nothing else
    table = pa.table({"step": [1] * rows, "prompt": ["p"] * rows, "completion": ["c"] * rows, "reward": [1.0] * rows})
    pq.write_table(table, tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(with_claimed_rows(content, rows, 1_000_000_000))
    assert pq.read_metadata(tmp_path / "rows.parquet").num_rows == 1_000_000_000
    audit(tmp_path / "rows.parquet", "--format", "json")
    run = hostile.write_trl(tmp_path / "run")
    (run / "completions" / "completions_00003.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes())
    assert as_json(audit(run, "--format", "json"))["run"]["coverage"]["unreadable_files"] == 1


def test_parquet_whose_dictionary_is_a_bomb(audit: Audit, tmp_path: Path) -> None:
    # One string of four megabytes, 5,000 times: 20 GB from a few kilobytes.
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), pa.array(["a" * 4_000_000]))
    columns = {"step": [1] * 5_000, "prompt": ["p"] * 5_000, "completion": text, "reward": [1.0] * 5_000}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 1_000_000
    audit(tmp_path / "rows.parquet", "--format", "json")


# ---- files that are none


@pytest.mark.parametrize("name", ["run.pkl", "run.pt", "run.bin", "rows.jsonl", "completions_00001.parquet"])
def test_a_pickle_is_never_executed(name: str, audit: Audit, tmp_path: Path) -> None:
    evidence = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch '{evidence}'",)

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Evil()))
    for form in FORMATS:
        assert audit(folder / name, "--format", form).code == 2
    assert audit(folder).code == 2
    assert not evidence.exists()
    # The pickle does what it says where it is loaded.
    pickle.loads((folder / name).read_bytes())
    assert evidence.exists()


def test_links_out_of_the_run_are_not_followed(audit: Audit, tmp_path: Path) -> None:
    secret = hostile.write_trl(tmp_path / "secret", payload="TOP-SECRET")
    run = hostile.write_trl(tmp_path / "run")
    completions = run / "completions"
    (completions / "completions_00003.parquet").unlink()
    (completions / "completions_00003.parquet").symlink_to(secret / "completions" / "completions_00003.parquet")
    (run / "trainer_state.json").unlink()
    (run / "trainer_state.json").symlink_to(secret / "trainer_state.json")
    page = tmp_path / "page.html"
    left = audit(run, "--format", "json", "--html", page)
    assert as_json(left)["run"]["completions"] == 23 * 16
    assert "TOP-SECRET" not in left.out + page.read_text(encoding="utf-8")
    # The whole folder.
    other = tmp_path / "other"
    other.mkdir()
    for name in ("completions", "wandb", "tensorboard", "trackio", "runs", "rlmon"):
        (other / name).symlink_to(secret / "completions")
    left = audit(other, "--format", "json", "--html", page)
    assert left.code == 2
    # And loose files of rows.
    loose = tmp_path / "loose"
    hostile.write_lines(tmp_path / "secret.jsonl", hostile.rows("TOP-SECRET"))
    hostile.write_lines(loose / "1.jsonl", hostile.rows("sum"))
    (loose / "2.jsonl").symlink_to(tmp_path / "secret.jsonl")
    left = audit(loose, "--format", "json", "--html", page)
    assert as_json(left)["run"]["completions"] == 384
    assert "TOP-SECRET" not in left.out + page.read_text(encoding="utf-8")


def test_the_page_does_not_replace_what_a_link_points_to(audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_lines(tmp_path / "rows.jsonl", hostile.rows("sum"))
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "page.html").symlink_to(tmp_path / "precious")
    audit(run, "--format", "json", "--html", tmp_path / "page.html")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_loop_of_directories(audit: Audit, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hostile.write_lines(run / "a" / "rows.jsonl", hostile.rows("sum"))
    (run / "a" / "again").symlink_to(run, target_is_directory=True)
    (run / "self").symlink_to(run / "self")
    (run / "up").symlink_to("..")
    assert as_json(audit(run, "--format", "json"))["run"]["completions"] == 384
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert audit(tmp_path / "loop").code == 2


FIFOS = (
    "rows.parquet", "x.db", "trainer_state.json", "run.json", "run-x.wandb", "rows.jsonl", "rows.jsonl.gz", "rows.csv",
    "rlmon/run.json", "checkpoint-3/trainer_state.json", "completions/completions_00001.parquet",
    "events.out.tfevents.1.host", "wandb/run-20250101_000000-x/run-x.wandb", "trackio/x.db", "x.pkl",
)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", [*FIFOS[:5], *(pytest.param(name, marks=pytest.mark.slow) for name in FIFOS[5:])])
def test_a_fifo_in_place_of_a_file(name: str, audit: Audit, tmp_path: Path) -> None:
    fifo = tmp_path / "run" / name
    fifo.parent.mkdir(parents=True)
    os.mkfifo(fifo)
    assert audit(tmp_path / "run").code == 2
    assert audit(fifo).code == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_among_the_files_of_a_run(audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_trl(tmp_path / "run")
    (run / "completions" / "completions_00003.parquet").unlink()
    for name in ("completions/completions_00003.parquet", "run.json", "x.db", "events.out.tfevents.1.host", "1.jsonl"):
        os.mkfifo(run / name)
    assert as_json(audit(run, "--format", "json"))["run"]["completions"] == 23 * 16


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(audit: Audit, tmp_path: Path) -> None:
    run = hostile.write_trl(tmp_path / "run")
    (run / "completions" / "completions_00003.parquet").chmod(0)
    assert as_json(audit(run, "--format", "json"))["run"]["coverage"]["unreadable_files"] == 1
    (run / "completions").chmod(0)
    (run / "trainer_state.json").chmod(0)
    assert audit(run).code == 2
    (run / "completions").chmod(0o700)


# ---- curves


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_keys_of_curves(payload: str, audit: Audit, tmp_path: Path) -> None:
    calls = [{"step": step, "reward": 0.5, payload: 0.5, f"rewards/{payload}/mean": 0.5} for step in range(1, 9)]
    forms = {
        "a.jsonl": "".join(json.dumps(call) + "\n" for call in calls),
        "b.log": "\n".join(str(call) for call in calls),
        "c.csv": ",".join(f'"{key}"' for key in calls[0]).replace("\n", " ") + "\n1,0.5,0.5,0.5\n2,0.5,0.5,0.5\n",
    }
    for name, text in forms.items():
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert as_json(audit(path, "--format", "json"))["run"]["steps"] in (2, 8)
    assert SHOWN not in audit(tmp_path / "a.jsonl").err


def test_curves_that_swell_or_never_end(audit: Audit, tmp_path: Path) -> None:
    line = b'{"step": 1, "reward": 0.5, "entropy": 0.5}\n'
    contents = {
        "bomb.jsonl.gz": gzip.compress(line + b"{" * (80 << 20)),
        "bomb.json.gz": gzip.compress(b'[{"reward": 0.5}' + b"," * (80 << 20)),
        "deep.json": b'[{"reward": ' + b"[" * 1_000_000,
        "deep.jsonl": line + b'{"reward":' + b'{"a":' * 1_000_000,
        "one-line.log": b"{'reward': 0.5} {'reward': 0.5} " + b"{'" * 1_000_000,
        "quotes.csv": b'step,reward\n1,"' + b"x" * 3_000_000,
        "digits.jsonl": line * 2 + b'{"step": 1e999, "reward": ' + b"9" * 100_000 + b"}\n",
        "steps.jsonl": b"".join(b'{"step": %d, "reward": 1e400}\n' % (10**step) for step in range(0, 60, 3)),
        "steps.log": b"step:" + b"9" * 200_000 + b" - actor/entropy:1\n" + b"step:1 - actor/entropy:1\n" * 2,
        "spaces.log": b"{'loss': 1" + b" " * 500_000 + b"\n{'loss': 1}\n{'loss': 1}",
        "dashes.log": b"step:1 - " + b"a:" * 300_000 + b"\nstep:1 - loss:1\nstep:2 - loss:1\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        audit(tmp_path / name, "--format", "json")


def test_a_large_binary_file_is_no_run(audit: Audit, tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(64 << 30)
    assert audit(tmp_path).code == 2


def test_a_folder_of_hostile_runs(audit: Audit, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name in ("\x1b[31m[bold]x", "::error::y", "broken", "=cmd|' A0"):
        (folder / name).mkdir(parents=True)
        calls = "".join(json.dumps({"step": step, "reward": 0.5, "entropy": 0.5}) + "\n" for step in range(9))
        (folder / name / "m.jsonl").write_text(calls)
    os.symlink("/", folder / "out")
    os.symlink(folder, folder / "again")
    left = audit(folder)
    assert "4 runs" in left.out
    assert unprintable(left.out) == set()
    assert len(json.loads(audit(folder, "--format", "json", "--fail-on", "never").out)) == 4


# ---- trackers


def test_a_damaged_data_base(audit: Audit, tmp_path: Path) -> None:
    whole = next((GOLDEN / "trackio").glob("*.db")).read_bytes()
    folder = tmp_path / "trackio"
    folder.mkdir()
    for at, content in enumerate(
        (whole[: len(whole) // 2], whole[:100], whole[:4096] + b"\xff" * (len(whole) - 4096), b"SQLite format 3\0" * 9)
    ):
        (folder / "x.db").write_bytes(content)
        assert audit(folder).code in (0, 1, 2), at
    # Pages that point at each other.
    torn = bytearray(whole)
    for position in range(512, len(torn), 97):
        torn[position] = (torn[position] + 1) % 256
    (folder / "x.db").write_bytes(torn)
    audit(folder)


def test_a_data_base_that_computes_for_ever(audit: Audit, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as base:
        base.execute(
            "CREATE VIEW metrics AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT 'r' AS run_name, i AS step, '{}' AS metrics, '' AS timestamp FROM n"
        )
    base.close()
    assert audit(tmp_path / "x.db").code == 2


def test_a_data_base_with_hostile_values(audit: Audit, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as base:
        base.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp, run_name, step, metrics)")
        values = [
            "[" * 100_000,
            "{",
            b"\xff",
            None,
            3,
            '{"__proto__": 1, "loss": NaN}',
            '{"loss": 1e999}',
            '{"loss": 1}',
        ]
        for step, metrics in enumerate(values * 4):
            for number in (step, 2**62, -1, "x", None):
                base.execute("INSERT INTO metrics VALUES (NULL, '', '__proto__', ?, ?)", (number, metrics))
    base.close()
    audit(tmp_path / "x.db", "--format", "json")


def test_a_torn_wandb_file(audit: Audit, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    whole = (GOLDEN / "wandb-trl" / "run-golden.wandb").read_bytes()
    file = tmp_path / "run-x.wandb"
    damage = {
        "half": whole[: len(whole) // 2],
        "header only": whole[:7],
        "no header": whole[7:],
        "zeros": whole[:7] + b"\0" * 1_000_000,
        "huge length": whole[:7] + b"\0\0\0\0\xff\xff\x01" + b"a" * 70_000,
        "never ends": whole[:7] + (b"\0\0\0\0\xf9\x7f\x03" + b"a" * 32_761) * 4_000,
    }
    for name, content in damage.items():
        file.write_bytes(content)
        left = audit(file, "--format", "json")
        assert left.code == 2 or name == "half"


def test_event_files_with_lengths_that_lie(audit: Audit, tmp_path: Path) -> None:
    whole = next((GOLDEN / "tensorboard").glob("events*")).read_bytes()
    file = tmp_path / "events.out.tfevents.1.host.1.0"
    record = b"\x09" + struct.pack("<d", 1.0) + b"\x10\x01"
    damage = {
        "half": whole[: len(whole) // 2],
        "huge length": whole[:200] + struct.pack("<Q", 2**63) + b"\0" * 64,
        "length of 63 MB": struct.pack("<QI", 63 << 20, 0) + b"a" * 100,
        "huge field": struct.pack("<QI", len(record) + 6, 0) + record + b"\x2a\xff\xff\xff\xff\x0f" + b"\0" * 4,
        "endless varint": struct.pack("<QI", 30, 0) + b"\xff" * 30 + b"\0" * 4,
        "empty": b"",
    }
    for name, content in damage.items():
        file.write_bytes(content)
        left = audit(tmp_path, "--format", "json")
        assert left.code == 2 or name in ("half", "huge length"), name


def test_events_at_steps_beyond_all_numbers(audit: Audit, tmp_path: Path) -> None:
    events = []
    for step in (0, 1, 2**63, 2**64 - 1, 2**62, 5):
        for tag in (b"train/loss", b"train/entropy", b"__proto__", b"\x1b[2J\xff"):
            value = b"\x0a" + varint(len(tag)) + tag + b"\x15" + struct.pack("<f", float("nan") if step == 5 else 1.0)
            summary = b"\x0a" + varint(len(value)) + value
            events.append(b"\x10" + varint(step) + b"\x2a" + varint(len(summary)) + summary)
    frames = b"".join(struct.pack("<QI", len(event), 0) + event + b"\0" * 4 for event in events)
    (tmp_path / "events.out.tfevents.1.host.1.0").write_bytes(frames)
    for form in FORMATS:
        left = audit(tmp_path, "--format", form)
        if form == "json":
            as_json(left)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A copy of an rlmon log."""
    folder = tmp_path / "rlmon"
    shutil.copytree(GOLDEN.parent / "runlog-schema-1", folder)
    return folder


def test_an_rlmon_log_with_a_hostile_header(audit: Audit, log: Path) -> None:
    assert audit(log, "--format", "json").code == 0
    contents = ("", "[" * 100_000, '{"__proto__": {}}', "null", '{"schema_version": 1e999}', "\x1b[2J", "NaN", "{}")
    for content in contents:
        (log / "run.json").write_text(content)
        assert audit(log).code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "4"), ("step", 2**63), ("step", [1]), ("attempt", {}), ("completions", "many"), ("metrics", [1]),
        ("metrics", {"rlmon/entropy/mean": {"a": 1}}), ("metrics", {"rlmon/entropy/mean": 10**400}), ("blocks", 3),
        ("blocks", [{"source": [], "prompts": "x", "completions": {}, "stats": None}]), ("rounds", 1.5),
        ("faults", {"x": "y"}), ("time_unix_seconds", "\x1b[2J"),
    ],
)  # fmt: skip
def test_an_rlmon_log_with_records_of_other_types(name: str, value: Any, audit: Audit, log: Path) -> None:
    lines = (log / "steps.jsonl").read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {name: value})
    (log / "steps.jsonl").write_text("\n".join(lines) + "\n")
    left = audit(log, "--format", "json")
    assert left.code == 2
    assert "rlmon did not write it" in left.err


@pytest.mark.parametrize("name", ["run.json", "steps.jsonl", "events.jsonl", "manifest.json"])
def test_an_rlmon_log_with_links_and_pipes(name: str, audit: Audit, log: Path, tmp_path: Path) -> None:
    kept = (log / name).read_bytes()
    (tmp_path / "secret").write_bytes(kept)
    (log / name).unlink()
    (log / name).symlink_to(tmp_path / "secret")
    assert audit(log).code == 2
    if hasattr(os, "mkfifo"):
        (log / name).unlink()
        os.mkfifo(log / name)
        assert audit(log).code == 2


def test_an_rlmon_log_whose_manifest_leads_out_of_it(audit: Audit, log: Path, tmp_path: Path) -> None:
    manifest = json.loads((log / "manifest.json").read_text())
    segment = manifest["folders"]["rollouts"]["segments"][0]
    (log / "rollouts" / segment).rename(tmp_path / "segment-1.parquet")
    (log / "rollouts" / "segment-").mkdir()
    for name in ("../../segment-1.parquet", "segment-/../../../segment-1.parquet", str(tmp_path / "segment-1.parquet")):
        manifest["folders"]["rollouts"]["segments"] = [name]
        (log / "manifest.json").write_text(json.dumps(manifest))
        left = audit(log, "--format", "json")
        assert left.code == 2
        assert "is no segment" in left.err
    # As a link inside the folder it is passed over and counted.
    manifest["folders"]["rollouts"]["segments"] = [segment]
    (log / "manifest.json").write_text(json.dumps(manifest))
    (log / "rollouts" / segment).symlink_to(tmp_path / "segment-1.parquet")
    assert as_json(audit(log, "--format", "json"))["run"]["coverage"]["unreadable_files"] == 1
