"""Properties of the run log: text and floats read back exactly; which attempts are shown follows its definition."""

from __future__ import annotations

import json
import math
from typing import Any

import make_runlog as made
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmon.records import Rollout
from rlmon.runlog import RunLogWriter, as_stored, compact, layout, lines, open_run, restore_text, schema
from rlmon.runlog.text import MARK, stored_text

patient = settings(max_examples=60)

any_text = st.text(
    st.one_of(st.characters(), st.characters(categories=["Cs"]), st.sampled_from(["\\", "u", "d", MARK, "\0", "\n"]))
)
any_float = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(allow_nan=False, allow_infinity=False)


@patient
@given(any_text)
def test_text_is_stored_as_valid_unicode_and_restored(text: str) -> None:
    stored = stored_text(text)
    assert stored.encode("utf-8").decode("utf-8") == stored
    assert restore_text(stored) == text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return
    assert stored == text or text.startswith(MARK), "valid text is stored as it is"


@patient
@given(st.lists(any_text, unique=True, max_size=6))
def test_different_texts_are_stored_differently(texts: list[str]) -> None:
    assert len({stored_text(text) for text in texts}) == len(texts)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), finite, any_text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(any_text, inner, max_size=4)),
    max_leaves=12,
)


@patient
@given(st.dictionaries(any_text, json_values, max_size=5))
def test_a_line_reads_back_equal(values: dict[str, Any]) -> None:
    line = lines.dump_line(values)
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert lines.parse_line(line[:-1]) == values


@patient
@given(st.dictionaries(st.text(max_size=5), any_float, max_size=6))
def test_step_records_read_back_as_stored(metrics: dict[str, float]) -> None:
    record = made.step_record(3, metrics=metrics, missing={})
    values = lines.parse_line(lines.dump_line(as_stored(record))[:-1])
    assert values is not None
    read = lines.build_step(values)
    assert read == as_stored(record) == as_stored(read)
    for name, value in metrics.items():
        stored = read.metrics[name]
        if math.isfinite(value):
            assert stored is not None
            assert stored.hex() == value.hex()
        else:
            assert stored is None
            assert name in read.missing


@patient
@given(st.binary(max_size=200), st.integers(min_value=0, max_value=2000))
def test_no_prefix_of_a_line_with_a_torn_end_is_a_record(noise: bytes, cut: int) -> None:
    line = lines.dump_line(made.step_record(1))[:-1]
    assert lines.parse_line(line[:cut] + lines.TORN[:-1]) is None
    if cut < len(line):
        assert lines.parse_line(line[:cut]) is None
    parsed = lines.parse_line(noise)
    assert parsed is None or isinstance(parsed, dict)


@patient
@given(st.data())
def test_columns_of_any_floats_have_null_for_not_finite(data: st.DataObject) -> None:
    rows = data.draw(st.integers(min_value=1, max_value=8))
    rewards = data.draw(st.lists(st.one_of(st.none(), any_float), min_size=rows, max_size=rows))
    texts = data.draw(st.lists(st.one_of(st.none(), any_text), min_size=rows, max_size=rows))
    weights = data.draw(
        st.lists(st.one_of(st.none(), st.lists(st.floats(width=32), max_size=3)), min_size=rows, max_size=rows)
    )
    columns = made.rollouts(0, rows, reward=rewards, completion=texts, opener_weights=weights)
    table = schema.table_from_columns(Rollout, columns)
    clean = [value if value is not None and math.isfinite(value) else None for value in rewards]
    assert table["reward"].to_pylist() == clean
    assert [None if t is None else restore_text(t) for t in table["completion"].to_pylist()] == texts
    assert table["opener_weights"].to_pylist() == [
        None if w is None else [v if math.isfinite(v) else None for v in w] for w in weights
    ]
    again = pa.ipc.open_stream(_ipc(table)).read_all()
    assert again.equals(table)


def _ipc(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


attempts = st.lists(
    st.tuples(st.booleans(), st.integers(min_value=0, max_value=6), st.integers(min_value=0, max_value=5)), max_size=5
)


@settings(max_examples=20)
@given(history=attempts)
def test_shown_steps_are_those_of_one_uninterrupted_run(
    tmp_path_factory: Any, history: list[tuple[bool, int, int]]
) -> None:
    """Against a model that keeps one list and cuts it at each resume; sometimes compacted, always exactly once."""
    path = tmp_path_factory.mktemp("run") / "run"
    expected: list[tuple[int, int]] = []
    written = 0
    for attempt, (fresh, from_step, steps) in enumerate([(True, 0, 3), *history]):
        start = 0 if fresh else min(from_step, expected[-1][1] if expected else 0)
        expected = [] if fresh else [entry for entry in expected if entry[1] <= start]
        writer = RunLogWriter.open(path, made.header(attempt), resume=not fresh, from_step=start)
        for step in range(start + 1, start + 1 + steps):
            writer.write_rollouts(made.rollouts(step - 1, 2, attempt=attempt))
            writer.append_step(made.step_record(step, attempt=attempt))
            expected.append((attempt, step))
            written += 1
        if attempt % 2:
            layout_before = sorted(layout.list_names(path / "rollouts"))
            compact(path)
            assert len(layout.list_names(path / "rollouts")) <= max(1, len(layout_before))
    run = open_run(path)
    assert [(r.attempt, r.step) for r in run.step_records()] == expected
    rows = [(r["attempt"], r["step"]) for r in run.rollouts(["attempt", "step"]).to_pylist()]
    assert rows == [entry for entry in expected for _ in range(2)]
    assert run.rollouts(all_attempts=True).num_rows == 2 * written
    assert len(run.step_records(all_attempts=True)) == written


@patient
@given(json_values)
def test_strict_json_whatever_the_value(value: Any) -> None:
    text = lines.dump(value)
    json.dumps(json.loads(text), allow_nan=False, ensure_ascii=False).encode("utf-8")
