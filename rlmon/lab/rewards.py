"""A reward function by its name, what it gives to completions of prompts, and which of them are successes by that."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rlmon.errors import ConfigError
from rlmon.lab.prompts import Prompts
from rlmon.metrics.formats import final_answer, normalise_answer
from rlmon.metrics.success import Deciding, Success
from rlmon.printable import one_line

BY_ANSWER = "answer"
"""The column that is compared with the final answer of a completion, where there is no reward function."""
Rewards = list[float | None]


def reward_function(name: str) -> Callable[..., Any]:
    """The function of this name in ``trl.rewards``, or at this dotted path (the working folder included; a colon may
    stand before the function). Importing it runs its code."""
    module_name, _, function_name = name.replace(":", ".").rpartition(".")
    if not module_name:
        module_name = "trl.rewards"
    elif os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"There is no reward function {name!r} ({error}). Give a name from trl.rewards or a dotted import path."
        ) from error
    return function


def named(reward: Callable[..., Any] | None) -> str:
    """What the rewards of this function are called; of none, those by the answers."""
    return BY_ANSWER if reward is None else getattr(reward, "__name__", "reward")


def rewards_of(
    texts: Sequence[str], ids: Sequence[Sequence[int]], asked: Prompts, reward: Callable[..., Any] | None
) -> Rewards | None:
    """A reward for each completion of the prompts ``asked``, where there is something to score them by."""
    if reward is None:
        if BY_ANSWER not in asked.columns:
            return None
        right = [None if one is None else normalise_answer(str(one)) for one in asked.columns[BY_ANSWER]]
        # Where a row names no answer, nothing is known of what its prompt is answered with.
        return [
            None if answer is None else float(final_answer(text) == answer)
            for text, answer in zip(texts, right, strict=True)
        ]
    name = getattr(reward, "__name__", "the reward function")
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(asked.prompts, texts, strict=True)
    ]
    own = {"prompts": asked.prompts, "completions": completions, "completion_ids": ids}
    try:
        found = reward(**{**asked.columns, **own})
        if inspect.iscoroutine(found):
            found = asyncio.run(found)
        values = [None if value is None else float(value) for value in found]
    except Exception as error:  # the user's own code
        raise ConfigError(f"{name} raised {type(error).__name__}: {one_line(str(error), 240)}") from error
    if len(values) != len(completions):
        raise ConfigError(
            f"{name} gave {len(values)} rewards for {len(completions)} completions: one for each is needed."
        )
    return [None if value is None or not math.isfinite(value) else value for value in values]


def one_success(
    scored: Sequence[Rewards], reward: Callable[..., Any] | None, prompts: int
) -> tuple[Success, str | None]:
    """One meaning of a success for several models, decided by the rewards of all, and what it is in words; ``None``
    where that is not known."""
    deciding = Deciding.start(None)
    for rewards in scored:
        deciding = deciding.with_round(rewards, {named(reward): rewards}, prompts=prompts)
    success = deciding.settled().definition
    said = None
    if scored and (reward is None or success.known):
        said = "the final answer is that of the column answer" if reward is None else str(success)
    return success, said
