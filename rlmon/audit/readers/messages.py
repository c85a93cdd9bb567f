"""Conversations, as logs hold them: lists of messages, one message, or either written out as JSON or Python text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlmon.audit.readers.parsing import literal
from rlmon.metrics.prompts import render_completion, render_prompt, text_of

BEGINS = r"""^\s*(array\()?\[?\s*\{\s*["'](role|content|from|value|tool_calls|reasoning_content)["']\s*:"""
"""How a conversation begins that was written out as text; what begins otherwise is not parsed."""
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
SPOKEN = ("content", "tool_calls", "function_call", "reasoning_content", "thinking", "reasoning")
"""Fields of a message that say something."""


def conversation(value: Any) -> list[Mapping[str, Any]] | None:
    """Messages with ``role``, of a list of messages or of a single one; ``None`` for anything else.

    ShareGPT's ``from`` and ``value`` are turned into ``role`` and ``content``.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value:
        return None
    messages = [_message(message) for message in value]
    return messages if all(message is not None for message in messages) else None  # type: ignore[return-value]


def _message(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("role"), str) and any(field in value for field in SPOKEN):
        calls = [*_calls(value.get("tool_calls")), *_calls_in(value.get("content"))]
        return {**value, "tool_calls": calls} if calls or "tool_calls" in value else value
    if value.get("type") == "function_call" and "name" in value:  # an item of OpenAI's Responses
        return {"role": "assistant", "tool_calls": [value]}
    if isinstance(value.get("from"), str) and "value" in value:
        return {"role": SHAREGPT_ROLES.get(value["from"], value["from"]), "content": value["value"]}
    return None


def _calls(value: Any) -> list[Any]:
    """Tool calls as a list of objects, also where each or all of them were written out."""
    calls = literal(value) if isinstance(value, str) else value
    calls = [calls] if isinstance(calls, Mapping) else calls if isinstance(calls, list) else []
    return [literal(call) or call if isinstance(call, str) else call for call in calls]


def _calls_in(content: Any) -> list[Any]:
    """Tool calls among the parts of a content, as Anthropic has them."""
    parts = content if isinstance(content, list) else []
    found = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "tool_use"]
    return [{"name": part.get("name"), "arguments": part.get("input")} for part in found]


def written(text: str) -> list[Mapping[str, Any]] | None:
    """The conversation that was written out in ``text``, as JSON or as Python's ``repr``; ``None`` where it is none."""
    return conversation(literal(text))


def rendered_calls(value: Any) -> str | None:
    """Tool calls that stand beside a completion as text; ``None`` where there are none."""
    calls = _calls(value)
    return render_completion([{"role": "assistant", "tool_calls": calls}]) if calls else None


def split(value: Any) -> tuple[Any, Any]:
    """A whole conversation as what stood before the model's first message, and what was said from there on."""
    messages = (written(value) if isinstance(value, str) else conversation(value)) or []
    begin = next((at for at, message in enumerate(messages) if message.get("role") == "assistant"), len(messages))
    return messages[:begin] or None, messages[begin:] or None


def rendered(value: Any, *, completion: bool = False) -> str | None:
    """One prompt or completion as text, whatever it is; ``None`` stays ``None``."""
    if value is None or isinstance(value, str):
        return value
    messages = conversation(value)
    if messages is not None:
        return render_completion(messages) if completion else render_prompt(messages)
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        if any("content" in part or "role" in part for part in value):
            return render_completion(value) if completion else render_prompt(value)
        return text_of(value) or json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)
