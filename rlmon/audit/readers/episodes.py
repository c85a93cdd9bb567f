"""Rows of verifiers episodes, as verifiers and prime-rl write them: traces of nodes, some of them sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlmon.audit.readers.columns import number
from rlmon.audit.readers.parsing import single, walk


def rows_of(episode: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per trace of a verifiers episode: what was sampled is the completion, what stood before it the prompt."""
    traces = episode.get("traces")
    for trace in traces if isinstance(traces, list) else []:
        if not isinstance(trace, Mapping):
            continue
        raw = trace.get("nodes")
        nodes = [node for node in raw if isinstance(node, Mapping)] if isinstance(raw, list) else []
        begin = next((index for index, node in enumerate(nodes) if node.get("sampled")), len(nodes))
        sampled = [node for node in nodes[begin:] if node.get("sampled")]
        prompt = [node["message"] for node in nodes[:begin] if isinstance(node.get("message"), Mapping)]
        written = [node["message"] for node in sampled if isinstance(node.get("message"), Mapping)]
        ids = [node.get("token_ids") for node in sampled]
        yield {
            "prompt": prompt or None,
            "completion": written or None,
            "reward": _episode_reward(trace),
            "group": walk(episode, "group.id"),
            "source": walk(episode, "env.id|env.name|env"),
            "advantage": single(walk(sampled[-1], "advantages")) if sampled else None,
            "completion_tokens": sum(map(len, ids)) if ids and all(isinstance(i, list) for i in ids) else None,  # type: ignore[arg-type]
            "truncated": walk(trace, "is_truncated|stop_condition"),
        }


def _episode_reward(trace: Mapping[str, Any]) -> float | None:
    given = trace.get("rewards")
    if not isinstance(given, Mapping):
        return number(trace.get("reward"))
    total = None
    for reward in given.values():
        score = number(walk(reward, "score") if isinstance(reward, Mapping) else reward)
        weight = number(reward.get("weight")) if isinstance(reward, Mapping) else None
        if score is not None:
            total = (total or 0.0) + score * (1.0 if weight is None else weight)
    return total
