"""What is read out of a completion is what the metrics read, and hostile texts are only text."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pyarrow as pa
import pytest
from audit_rows import table
from hypothesis import given
from hypothesis import strategies as st

from rlmon.audit.features import UNKNOWN, Features, Reader, codes, column, floats, text_key
from rlmon.metrics.formats import ModeSet, final_answer, mask_template, split_reasoning

MODES = ModeSet.build(None)


def features(*texts: str | None) -> Features:
    return Reader(MODES).features(table([{"step": 1, "completion": text} for text in texts]))


def test_features_are_those_of_the_metrics() -> None:
    texts = ["<think>1+1</think>\\boxed{2}", "2", "Ann has 2 figs.", "Bob has 3 figs.", "print(2)", ""]
    found = features(*texts)
    assert [MODES.names[code] for code in found.mode] == [MODES.parse(text) for text in texts]
    # Equal once masked: Ann's and Bob's; equal answers: the first two and the call of print.
    assert found.template[2] == found.template[3]
    assert len(set(found.template.tolist())) == 5
    assert found.answer[0] == found.answer[1]
    assert found.answer[5] == UNKNOWN
    assert found.characters.tolist() == [len(text) for text in texts]
    for text, template, answer in zip(texts, found.template, found.answer, strict=True):
        assert template == text_key(mask_template(text))
        expected = final_answer(split_reasoning(text)[1])
        assert answer == (UNKNOWN if expected is None else text_key(expected))


@given(st.lists(st.text(max_size=40), min_size=1, max_size=12))
def test_any_text_is_read_and_equal_texts_alike(texts: list[str]) -> None:
    twice = features(*texts, *texts)
    for name in ("mode", "template", "answer", "text"):
        values = getattr(twice, name)
        np.testing.assert_array_equal(values[: len(texts)], values[len(texts) :])
        assert (values >= (0 if name != "answer" else UNKNOWN)).all()
    assert len(set(twice.text.tolist())) == len(set(texts))


def test_a_long_text_is_read_but_not_remembered() -> None:
    reader = Reader(MODES)
    long, short = "a b. " * 200, "a b."
    reader.features(table([{"step": 1, "completion": text} for text in (long, short)]))
    assert list(reader._remembered) == [short]
    reader.features(table([{"step": 1, "completion": "other"}]))
    assert list(reader._remembered) == ["other"], "nothing is carried from piece to piece"


def test_a_missing_text_is_unknown() -> None:
    found = features(None, "7")
    assert (found.mode[0], found.template[0], found.answer[0], found.text[0]) == (UNKNOWN,) * 4
    assert math.isnan(found.characters[0])
    none = Reader(MODES).features(pa.table({"step": [1, 1]}))
    assert none.mode.tolist() == [UNKNOWN, UNKNOWN]


def test_stored_features_are_kept_as_they_are() -> None:
    rows = pa.table(
        {
            "step": [1, 1, 1],
            "completion": ["print(1)", None, None],
            "mode": ["bare", "json", "a mode of another version"],
            "template_key": [5, 6, None],
            "answer_key": pa.array([None, 7, None], pa.int64()),
        }
    )
    found = Reader(MODES).features(rows)
    assert found.mode.tolist() == [MODES.names.index("bare"), MODES.names.index("json"), UNKNOWN]
    assert found.template.tolist() == [5, 6, UNKNOWN]
    assert found.answer.tolist() == [UNKNOWN, 7, UNKNOWN]
    assert found.text.tolist() == [text_key("print(1)"), UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("text", ["", "seven", "\ud800 alone", "\x00"])
def test_a_key_is_a_hash_of_63_bits(text: str) -> None:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    assert text_key(text) == int.from_bytes(digest, "little") % 2**63


def test_columns_that_are_absent_or_null_are_none() -> None:
    rows = pa.table({"a": [1.0, None, math.nan], "b": pa.nulls(3, pa.float64())})
    assert column(rows, "a") is not None
    assert column(rows, "b") is None
    assert column(rows, "c") is None
    assert floats(rows, "c").shape == (3,)
    values = floats(rows, "a")
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()


def test_codes_are_in_order_of_appearance_over_chunks() -> None:
    values = pa.chunked_array([["b", None], ["a", "b"]])
    code, names = codes(values)
    assert code.tolist() == [0, -1, 1, 0]
    assert names == ["b", "a"]
    assert codes(pa.chunked_array([], pa.string()))[0].size == 0
