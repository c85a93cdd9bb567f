"""Identity and text of prompts and completions come from their content alone."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmon.metrics.prompts import prompt_identities, prompt_identity, render_completion


def picture(mode: str = "RGB", colour: Any = 7, size: tuple[int, int] = (3, 2)) -> Image.Image:
    made = Image.new(mode, size)
    made.putpixel((1, 1), colour)
    return made


def asked(image: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}]


class Opaque:
    def __init__(self, value: Any) -> None:
        self.value = value


ALIKE = {
    "picture": lambda: picture(),
    "palette": lambda: picture("P"),
    "array": lambda: np.arange(6).reshape(2, 3),
    "objects": lambda: np.array([1, "a"], dtype=object),
    "tensor": lambda: torch.arange(4.0),
    "bf16": lambda: torch.arange(4.0, dtype=torch.bfloat16),
    "bytes": lambda: {"bytes": b"\x89PNG", "path": None},
    "path": lambda: Path("a/b.png"),
    "date": lambda: datetime.date(2026, 1, 2),
    "set": lambda: {"b", "a", "c"},
    "object": lambda: Opaque(picture()),
    "keys of several kinds": lambda: {1: "a", "b": Opaque(1)},
}


@pytest.mark.parametrize("kind", ALIKE)
def test_equal_content_is_one_prompt_wherever_it_lies_in_memory(kind: str) -> None:
    kept = [ALIKE[kind]() for _ in range(8)]  # all alive: eight addresses
    assert len(set(prompt_identities([asked(value) for value in kept]))) == 1
    assert len({prompt_identity(asked(value)) for value in kept}) == 1


def test_other_content_is_another_prompt() -> None:
    values = [
        picture(), picture(colour=8), picture("L"), picture(size=(2, 3)), picture("P"),
        np.arange(6), np.arange(6.0), np.arange(6).reshape(2, 3), torch.arange(3.0), torch.arange(3.0).bfloat16(),
        b"a", bytearray(b"a"), {"a"}, Path("a"), Opaque(1), Opaque(2),
    ]  # fmt: skip
    assert len(set(prompt_identities([asked(value) for value in values]))) == len(values)


def test_two_palettes_are_two_pictures() -> None:
    one, other = picture("P"), picture("P")
    other.putpalette([i % 256 for i in range(1, 769)])
    assert prompt_identity(asked(one)) != prompt_identity(asked(other))


def test_a_picture_shared_by_a_batch_is_read_once() -> None:
    class Counted:
        mode, size = "L", (1, 1)
        reads = 0

        def tobytes(self) -> bytes:
            Counted.reads += 1
            return b"\0"

    shared = Counted()
    assert len(set(prompt_identities([asked(shared)] * 8))) == 1
    assert Counted.reads == 1


def test_what_cannot_be_read_is_no_error() -> None:
    class Torn:
        mode, size = "L", (1, 1)

        def tobytes(self) -> bytes:
            raise OSError("image file is truncated")

    circle: list[Any] = []
    circle.append(circle)
    assert prompt_identity(asked(Torn())) == prompt_identity(asked(Torn()))
    assert prompt_identity(circle) == prompt_identity(circle)


def test_text_prompts_have_the_identity_that_they_always_had() -> None:
    assert prompt_identity("2 + 2 =") == "9ff6ea6df021d57a61ccbafa"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_calls_and_thoughts_are_part_of_what_the_model_wrote() -> None:
    completion = [
        {"role": "assistant", "content": "", "tool_calls": [call("add", b=2, a=1), call("add", a=1, b=3)]},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "thinking": "so 3", "content": "Done!"},
    ]
    assert render_completion(completion) == (
        '<tool_call>{"arguments": {"a": 1, "b": 2}, "name": "add"}</tool_call>\n'
        '<tool_call>{"arguments": {"a": 1, "b": 3}, "name": "add"}</tool_call>\n'
        "<think>so 3</think>\nDone!"
    )


def test_the_same_call_reads_the_same_in_every_dialect() -> None:
    plain = [{"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}]
    function = {"name": "add", "arguments": '{"a": 1}'}
    served = [{"role": "assistant", "tool_calls": [{"id": "call_9", "function": function}]}]
    legacy = [{"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"a":1}'}}]
    assert len({render_completion(one) for one in (plain, served, legacy)}) == 1
    other = [{"role": "assistant", "content": "", "tool_calls": [call("add", a=2)]}]
    assert render_completion(other) != render_completion(plain)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_under_each_of_its_names(key: str) -> None:
    assert render_completion([{"role": "assistant", key: "hm", "content": "4"}]) == "<think>hm</think>\n4"
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}]
    assert render_completion([{"role": "assistant", "content": parts}]) == "<think>hm</think>4"
