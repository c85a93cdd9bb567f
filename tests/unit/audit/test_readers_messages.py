"""Conversations in rows: written out as text, with tool calls, in other dialects; what the model wrote is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlmon.audit.readers import columns, mapped, messages, open_source
from rlmon.audit.run import OpenedRun

PROMPT = [{"role": "system", "content": "Solve."}, {"role": "user", "content": 'What is "2+2"?'}]
ANSWER = [{"role": "assistant", "content": "<think>it's\n\\d</think>\\boxed{4}"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}
TOOLS = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]
SAID = '<tool_call>{"arguments": {"a": 1, "b": 2}, "name": "add"}</tool_call>\nIt is 3.'


def rows_of(run: OpenedRun) -> list[dict[str, Any]]:
    return [row for shard in run.shards for batch in shard.read() for row in batch.rows.to_pylist()]


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def with_numpy(conversation: list[dict[str, Any]]) -> str:
    """As pandas writes a column of NumPy arrays into CSV: items on lines of their own, without commas."""
    return "[" + "\n ".join(repr(message) for message in conversation) + "]"


@pytest.mark.parametrize("write", [json.dumps, repr, with_numpy, lambda value: f" {json.dumps(value, indent=1)}\n"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_conversations_that_were_written_out(tmp_path: Path, write: Any, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    table = pa.table(
        {
            "step": [1, 2],
            "prompt": [write(PROMPT), "plain"],
            "completion": [write(ANSWER), "[1, 2]"],
            "reward": [1.0, 0.0],
        }
    )
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        quoted = [
            [f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in row.values()] for row in table.to_pylist()
        ]
        path.write_text("\n".join([",".join(table.column_names), *(",".join(row) for row in quoted)]) + "\n")
    else:
        lines(path, table.to_pylist())
    first, second = rows_of(mapped.open_run(path))
    assert first["prompt"] == 'system: Solve.\nuser: What is "2+2"?'
    assert first["completion"] == "<think>it's\n\\d</think>\\boxed{4}"
    assert (second["prompt"], second["completion"]) == ("plain", "[1, 2]")


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "assistant", "content": "torn',
        '{"role": 5, "content": "x"}',
        '[{"role": "a"}]',
        '[{"role": "x", "content": "y"}, 3]',
        "[{'role': 'assistant', 'content': open('/etc/passwd')}]",
        '[{"content": "no role"}]',
        '[{"role"' + "[" * 5_000,
    ],
)
def test_text_that_is_no_conversation_stays_what_the_model_wrote(text: str) -> None:
    assert columns.text_column(pa.array([text, None]), completion=True).to_pylist() == [text, None]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_tool_calls_are_part_of_what_was_written(tmp_path: Path, late: bool, suffix: str) -> None:
    """Also where none of the first rows has one, and where Parquet gives every message every field."""
    plain = {"step": 1, "prompt": "p", "completion": [{"role": "assistant", "content": "no tool"}], "reward": 0.0}
    called = {**plain, "completion": TOOLS}
    records = [*[plain] * (40 if late else 0), called]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        lines(path, records)
    assert [row["completion"] for row in rows_of(mapped.open_run(path))] == ["no tool"] * (len(records) - 1) + [SAID]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "tool_calls": [json.dumps(CALL)]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "assistant", "function_call": CALL["function"]},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "add", "input": {"a": 1, "b": 2}}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 1, "b": 2}'},
    ],
)
def test_dialects_of_tool_calls(message: dict[str, Any]) -> None:
    assert messages.rendered([message], completion=True) == SAID.partition("\n")[0]


def test_dialects_of_conversations() -> None:
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert messages.rendered(sharegpt) == "user: q\nassistant: a"
    assert messages.rendered(sharegpt, completion=True) == "a"
    assert messages.rendered({"role": "assistant", "content": "alone"}, completion=True) == "alone"
    assert messages.rendered([{"type": "text", "text": "part"}], completion=True) == "part"
    assert messages.rendered([{"role": "assistant", "content": "x", "tool_calls": 5}], completion=True) == "x"


def test_written_out_conversations_in_tables_of_trl(tmp_path: Path) -> None:
    (tmp_path / "completions").mkdir()
    table = pa.table(
        {"step": [1, 1], "prompt": [repr(PROMPT)] * 2, "completion": [json.dumps(ANSWER)] * 2, "r": [1.0, 0.0]}
    )
    pq.write_table(table, tmp_path / "completions" / "completions_00001.parquet")
    assert {row["completion"] for row in rows_of(open_source(tmp_path))} == {ANSWER[0]["content"]}
