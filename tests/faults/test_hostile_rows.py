"""Hostile rows of nested and listed shapes: counted or refused, in bounded time and memory.

As in ``test_hostile_runs``, the command is run as a process of its own and measured.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import hostile
import pytest

ROW = {"step": 1, "prompt": "p", "completion": "c", "reward": 1.0}


def audited(run: Path, folder: Path) -> dict[str, Any] | None:
    """What the audit says; ``None`` where it refused the run in one line."""
    left = hostile.run("audit", run, "--format", "json", folder=folder)
    assert left.code in (0, 1, 2), left.err
    assert left.processor_seconds < hostile.PROCESSOR_SECONDS
    assert left.resident_bytes < hostile.RESIDENT_BYTES
    assert "Traceback" not in left.err
    assert "mistake of rlmon" not in left.err
    if left.code == 2:
        assert re.fullmatch(r"rlmon: [^\n]+\n", left.err)
        return None
    found: dict[str, Any] = json.loads(left.out)
    return found


def several(count: int, **more: Any) -> dict[str, Any]:
    return {
        "step": 1,
        "prompt": "p",
        "responses": ["a", "b"] * (count // 2),
        "rewards": [1.0, 0.0] * (count // 2),
        **more,
    }


def repeated_prompt(path: Path) -> int:
    """One long prompt for very many completions: a file of 4 MB that would be 200 GB of rows."""
    hostile.write_lines(path, [several(8), several(200_000, prompt="x" * 1_000_000)])
    return 8


def nested_prompt(path: Path) -> int:
    rollouts = [{"text": "a", "reward": 1.0}] * 50_000
    good = [{"text": "a", "reward": 1.0}] * 8
    hostile.write_lines(
        path,
        [{"step": 1, "prompt": "p", "rollouts": good}, {"step": 2, "prompt": "x" * 1_000_000, "rollouts": rollouts}],
    )
    # The first 67 of them fit what a repeated prompt may take.
    return 8 + (1 << 26) // 1_000_000


def deep_nesting(path: Path) -> int:
    record: Any = {"text": "a", "reward": 1.0}
    for _ in range(300):
        record = {"step": 1, "rollouts": [record]}
    hostile.write_lines(path, [ROW] * 8 + [record])
    return 8


def many_completions(path: Path) -> int:
    """One record of 300,000 rows: they are counted some thousand at a time."""
    hostile.write_lines(path, [several(300_000)])
    return 300_000


def literals(path: Path) -> int:
    """Python text that would be slow, large or dangerous to evaluate."""
    texts = [
        "[{'role': 'assistant', 'content': " + "(" * 5_000,
        "[{'role': 'assistant', 'content': __import__('os').system('touch owned')}]",
        "[{'role': 'assistant', 'content': '" + "x" * 3_000_000 + "'}]",
        "[{'role': 'assistant', 'content': 9**9**9}]",
        "[{'role': 'assistant', 'content': '\\d'}]",
        '[{"role": "assistant", "content": ' + "[" * 5_000,
        '{"role": ["assistant"], "content": {"a": 1}}',
    ]
    hostile.write_lines(path, [ROW | {"completion": text} for text in texts])
    return len(texts)


def strange_messages(path: Path) -> int:
    values: list[Any] = [
        [{"role": "assistant", "content": 5, "tool_calls": 7}],
        [{"role": "assistant", "content": [None, 3, {"text": None}], "tool_calls": [None, [], {"function": 3}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 3_000}}]}],
        [{"from": [], "value": {}}],
        [[{"role": None}]],
        [[[["a"]]]],
        {"role": "assistant", "content": {"__proto__": 1}},
        [{"type": "text"}],
    ]
    hostile.write_lines(path, [ROW | {"completion": value} for value in values])
    # A list of lists without a score for each is damaged; so is one message list that nobody wrote.
    return len(values)


def rewards_of_any_name(path: Path) -> int:
    names = [f"{name}_reward" for name in ("=cmd|' /C calc'!A0", "\x1b[31m", "<b>", "a+b", "\n::error::x", "n" * 5_000)]
    record = {key: value for key, value in ROW.items() if key != "reward"}
    hostile.write_lines(path, [record | dict.fromkeys(names, 1.0)] * 8)
    return 8


@pytest.mark.parametrize(
    "write",
    [
        repeated_prompt, nested_prompt, deep_nesting, many_completions, literals, strange_messages, rewards_of_any_name,
    ],
)  # fmt: skip
def test_hostile_shapes(write: Any, tmp_path: Path) -> None:
    readable = write(tmp_path / "rows.jsonl")
    found = audited(tmp_path / "rows.jsonl", tmp_path)
    assert found is not None
    assert found["run"]["completions"] == readable
    assert not (tmp_path / "owned").exists()
    assert "\x1b" not in json.dumps(found, ensure_ascii=False)


def test_a_folder_of_many_small_files(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(3_000):
        (folder / f"{number:x}-{number * 7919 % 65536:04x}.json").write_text(json.dumps(ROW | {"step": number // 8}))
    (folder / "config.json").write_text("[" * 100_000)
    (folder / "args.json").write_text('{"num_generations": -3, "reward_weights": ["x"]}')
    found = audited(folder, tmp_path)
    assert found is not None
    assert found["run"]["completions"] == 3_000
    assert found["run"]["coverage"]["unreadable_files"] == 0
