"""The quick paths of the format parsers are equal to the plain definitions, and the fold to what it was."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmon.detectors import DETECTORS, Roster, start, state_to_json, step
from rlmon.metrics import formats
from rlmon.metrics.formats import mask_template, opening_tokens
from rlmon.records import Block, StepRecord

pieces = st.sampled_from(
    ["\x01", "\x02", "\x00", "\x7f", "A", "Zed", "a_b", "_", "0", "12", "1,2.", ".5", "9.", "``", "```", "~", "~~~",
     "\n~~~", "<", "</", "<a", "</a>", "<a>", "</a b>", "<answer>", "\\", "\\box", "\\boxed", "\\boxed{", "$", "$1$",
     "$$", "\\(", "\\[", "\\frac{1}{2}", "}", " ", "\n", "\t", "'", '"', "é", "Ж", "٣", "\u2028"]
)  # fmt: skip
ascii_texts = st.text(st.characters(codec="ascii"), max_size=60)
texts = st.one_of(st.text(max_size=60), ascii_texts, st.lists(st.one_of(pieces, ascii_texts), max_size=12).map("".join))
MANY = settings(max_examples=300)


@MANY
@given(texts.filter(str.isascii))
def test_masking_ascii_is_two_patterns_in_turn(text: str) -> None:
    numbers = re.sub(r"\d(?:[\d.,]*\d)?", "#", text, flags=re.ASCII)
    assert formats._mask_ascii(text) == re.sub(r"[A-Z]\w*", "N", numbers, flags=re.ASCII)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Ann has 1,200.5 figs.", "N has # figs."),
        ("A1b_2C", "N#b_#N"),  # numbers are masked first: "A#b_#C", then a capital and what is left of its word
        ("\x01 Ann \x02 7", "\x01 N \x02 #"),
        ("x\x01y Bob", "x\x01y N"),
        ("\x02,\x02 9,9", "\x02,\x02 #"),
    ],
)
def test_masking_by_hand(text: str, masked: str) -> None:
    assert formats._mask_ascii(text) == masked
    assert mask_template(text) == masked


@MANY
@given(texts)
def test_masking_any_text_is_the_slow_masking(text: str) -> None:
    masked = text[: formats.TEMPLATE_CHARS].strip()
    masked = re.sub(r"\"[^\"\n]{0,200}\"", "«", masked)
    masked = re.sub(r"'(?<!\w')[^'\n]{1,120}'(?!\w)", "«", masked)
    if masked.isascii():
        masked = re.sub(r"\d(?:[\d.,]*\d)?", "#", masked, flags=re.ASCII)
        masked = re.sub(r"[A-Z]\w*", "N", masked, flags=re.ASCII)
    else:
        masked = re.sub("“[^”\n]{0,200}”|«[^»\n]{0,200}»|「[^」\n]{0,200}」", "«", masked)
        masked = re.sub(r"\d(?:[\d.,]*\d)?", "#", masked)
        masked = re.sub("[A-ZÀ-ÖØ-ÞΑ-ΩА-Я]\\w*", "N", masked)
    assert mask_template(text) == re.sub(r"[ \t]{2,}", " ", masked).replace("«", "Q")


@MANY
@given(texts)
def test_boxed_is_one_pattern(text: str) -> None:
    assert formats._is_boxed(text) == (formats._LATEX.search(text) is not None)


@MANY
@given(texts)
def test_fenced_is_a_fence_anywhere_or_tildes_at_a_line(text: str) -> None:
    assert formats._is_fenced(text) == (re.search(r"```|(?:\A|\n)~~~", text) is not None)


@MANY
@given(texts)
def test_xml_is_a_closing_tag_behind_its_opening_one(text: str) -> None:
    def slow() -> bool:
        for place in [found.start() for found in re.finditer("</", text)][:8]:
            closing = formats._CLOSING_TAG.match(text, place)
            if closing is None:
                continue
            opening = "<" + closing.group(1)
            begin = text.find(opening, 0, place)
            if begin >= 0 and text[begin + len(opening)] in "> \t\n":
                return True
        return False

    assert formats._is_xml(text) == slow()


@MANY
@given(texts)
def test_the_opening_is_the_first_eight_tokens(text: str) -> None:
    tokens = re.findall(r"\w+|[^\w\s]", mask_template(text)[:200])
    assert opening_tokens(text) == tuple(tokens[:8])


def test_a_stored_sequence_folds_to_the_state_it_always_did() -> None:
    """160 records of three sources with gaps and a collapse: the digest is of version 2 of the detectors, with the
    lines that it had first."""
    rng = np.random.default_rng(20_260)
    first = {spec.id: {"warn": 0.8} if spec.rule == "effective" else {} for spec in DETECTORS}
    lines = {name: line | first[name] for name, line in Roster().defaults["lines"].items()}
    state, said = start(alpha=0.05, total_steps=160, group_size=8, parameters={"lines": lines}), 0
    for t in range(160):
        blocks = []
        for i in range(int(rng.integers(0, 5))):
            level = 0.25 if t < 80 else 0.85
            stats = {
                "mode_collision": round(float(rng.beta(20 * level, 20 - 20 * level)), 6),
                "mode_collision_within": round(float(rng.beta(20 * level, 20 - 20 * level)), 6),
                "template_collision": round(float(rng.beta(2, 30)), 6),
                "answer_collision": round(float(rng.random() * 0.2 * (1 + 3 * (t > 100))), 6),
                "entropy_nats": round(float(0.8 + 0.2 * rng.random()) * (1.0 if t < 90 else 0.2), 6),
                "kl_nats": round(float(rng.random() * 0.01 * t), 6),
                "kl_seq_nats": round(float(rng.random() * 0.1 * t), 6),
                "all_bad": round(float(rng.integers(0, 3)) / 2, 6),
                "completion_tokens": round(float(40 + rng.integers(0, 20)) * (1.0 if t < 120 else 0.25), 6),
                "reward": round(float(rng.random()), 6),
            }
            kept = {name: value for name, value in stats.items() if rng.random() > 0.1}
            blocks.append(Block(source="abc"[(t + i) % 3], prompts=2, completions=16, stats=kept))
        record = StepRecord(
            attempt=0, step=t + 1, time_unix_seconds=0.0, rounds=(t,), completions=64, prompts=8, tokens=640,
            metrics={"rlmon/health/non_finite": float(t == 150)}, blocks=tuple(blocks),
        )  # fmt: skip
        state, found = step(state, record)
        said += len(found)
    assert said == 10
    # Ten digits: the last ones of a logarithm are the processor's own.
    stored = json.dumps(rounded(state_to_json(state)), sort_keys=True, allow_nan=False)
    assert hashlib.blake2b(stored.encode(), digest_size=16).hexdigest() == "348ce2e2c4a72772e2da95004682cc0c"


def rounded(value: Any) -> Any:
    """The same with floats of ten digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value
