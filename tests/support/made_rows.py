"""The same completions as records of every shape that logs have them in."""

from __future__ import annotations

from typing import Any

STEPS, PROMPTS, DRAWS = 3, 2, 4
REWARDS = [1.0, 0.0, 0.5, 0.0]
EXPECTED = [
    (step, f"p{prompt}", f"text {step} {prompt} {draw}", REWARDS[draw])
    for step in range(STEPS)
    for prompt in range(PROMPTS)
    for draw in range(DRAWS)
]


def texts(step: int, prompt: int) -> list[str]:
    return [f"text {step} {prompt} {draw}" for draw in range(DRAWS)]


def per_prompt(**names: str) -> list[dict[str, Any]]:
    """A record a prompt, with its responses and rewards as lists."""
    return [
        {"step": step, "prompt": f"p{prompt}", names["text"]: texts(step, prompt), names["score"]: REWARDS}
        for step in range(STEPS)
        for prompt in range(PROMPTS)
    ]


def rollouts(step: int, of: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": text, "reward": reward, **more} for text, reward in zip(texts(step, of), REWARDS, strict=True)]


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def per_step() -> list[dict[str, Any]]:
    """A record a step, all columns lists, as ms-swift writes its completions."""
    return [
        {
            "gen_step": [str(step)] * PROMPTS * DRAWS,
            "prompt": [f"p{prompt}" for prompt in range(PROMPTS) for _ in range(DRAWS)],
            "completion": [text for prompt in range(PROMPTS) for text in texts(step, prompt)],
            "Accuracy": REWARDS * PROMPTS,
            "advantages": [0.5] * PROMPTS * DRAWS,
            "entropy": [9.0] * PROMPTS * DRAWS,
        }
        for step in range(STEPS)
    ]


SHAPES: dict[str, list[dict[str, Any]]] = {
    "responses": per_prompt(text="responses", score="rewards"),
    "completion-and-scores": per_prompt(text="completion", score="scores"),
    "columns-of-lists": per_step(),
    "chats": [
        {**record, "responses": [messages(text) for text in record["responses"]]}
        for record in per_prompt(text="responses", score="rewards")
    ],
    "rollouts": [
        {"step": s, "prompt": f"p{p}", "reward": 9.0, "rollouts": rollouts(s, p)}
        for s in range(STEPS)
        for p in range(PROMPTS)
    ],
    "rollouts-in-groups": [
        {"step": s, "groups": [{"prompt": f"p{p}", "rollouts": rollouts(s, p)} for p in range(PROMPTS)]}
        for s in range(STEPS)
    ],
    "whole-rows": [
        {"step": s, "rollouts": [row for p in range(PROMPTS) for row in rollouts(s, p, prompt=f"p{p}")]}
        for s in range(STEPS)
    ],
    "choices": [
        {
            "step": s,
            "prompt": f"p{p}",
            "choices": [{"message": messages(text)[0], "finish_reason": "stop"} for text in texts(s, p)],
            "rewards": REWARDS,
        }
        for s in range(STEPS)
        for p in range(PROMPTS)
    ],
    "objects-of-lists": [
        {**record, "rewards": {"accuracy": REWARDS}} for record in per_prompt(text="responses", score="rewards")
    ],
}  # fmt: skip
