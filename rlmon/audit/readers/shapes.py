"""Records as rows: rollouts nested in a record, lists of responses to one prompt, a whole step as columns of lists."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rlmon.audit.readers.columns import number
from rlmon.audit.readers.messages import conversation
from rlmon.audit.readers.parsing import literal, single, walk

MANY = frozenset(
    {
        "completions", "responses", "outputs", "generations", "samples", "answers", "texts", "candidates",
        "predictions", "model_outputs", "generated_texts", "solutions",
    }
)  # fmt: skip
"""Names of columns that hold several completions where they hold a list; under another name the parts of a list are
turns of one completion, unless something beside them is a list of the same length."""
PARTS_OF_CONTENT = frozenset({"text", "thinking", "image", "image_url", "tool_use", "input_text", "output_text"})
DEPTH = 3
KEYS = 64
SCORES = ("reward", "advantage")
"""Of one completion: one number for several says nothing of any of them."""


def nested_in(record: Mapping[str, Any], names: Collection[str], depth: int = DEPTH) -> tuple[str, ...]:
    """Keys that lead to a list of objects which have one of ``names``; empty where there is none below the top."""
    inner = [
        (key, value[0])
        for key, value in list(record.items())[:KEYS]
        if isinstance(value, list) and value and isinstance(value[0], Mapping) and conversation(value) is None
    ]
    for key, first in inner:
        if any(name in first for name in names) and first.get("type") not in PARTS_OF_CONTENT:
            return (key,)
    for key, first in inner if depth > 1 else ():
        if below := nested_in(first, names, depth - 1):
            return (key, *below)
    return ()


def flattened(
    record: Mapping[str, Any], within: Sequence[str], place: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects at the end of ``within``, each with what stands around it, after the place of its list.

    Its own keys come first. A list around the objects that is as long as theirs gives each of them its item.
    """
    inner = record.get(within[0]) if within else None
    if not isinstance(inner, list):
        yield place, dict(record)
        return
    around = {key: value for key, value in record.items() if key != within[0]}
    beside = {key: value for key, value in around.items() if _is_list_of(value, len(inner))}
    for index, item in enumerate(inner):
        if not isinstance(item, Mapping):
            yield place, {}  # counted as a row that cannot be read
            continue
        own = {key: value[index] for key, value in beside.items()}
        yield from flattened({**around, **own, **item}, within[1:], f"{place}.{index}" if within[1:] else place)


def innermost(record: Mapping[str, Any], within: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The objects at the end of ``within``, along the first of each list, without what stands around them."""
    value: Any = record
    for depth, key in enumerate(within):
        items = value.get(key) if isinstance(value, Mapping) else None
        if not isinstance(items, list):
            return
        if depth == len(within) - 1:
            yield from (item for item in items if isinstance(item, Mapping))
        value = items[0] if items else None


def _is_list_of(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and conversation(value) is None


def listed(value: Any) -> Any:
    """A list that was written out as text, as CSV has it; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    found = literal(value)
    return found if isinstance(found, list) else value


def holds_several(row: Mapping[str, Any], many: bool) -> bool:
    """Whether the completion of a row, by canonical names, is a list of completions.

    ``many``: the name of its column says so.
    """
    completion = row.get("completion")
    if not isinstance(completion, list) or not completion or conversation(completion) is not None:
        return False
    if all(isinstance(part, Mapping) and part.get("type") in PARTS_OF_CONTENT for part in completion):
        return False
    beside = any(
        isinstance(value, list) and len(value) == len(completion)
        for name, value in row.items()
        if name in ("step", "completion_tokens") or _is_score(name)
    )
    return many or beside or any(isinstance(part, (list, Mapping)) for part in completion)


def _is_score(name: str) -> bool:
    return name.partition("/")[0] in SCORES


def exploded(row: Mapping[str, Any], group: str) -> Iterator[dict[str, Any]]:
    """One row a completion; nothing where lists beside them do not fit.

    One prompt for all of them makes them a group, by the name of ``group`` where the row names none. One score for
    several completions is none of theirs: it becomes ``None``.
    """
    count = len(row["completion"])
    lists = {name for name, value in row.items() if isinstance(value, list) and conversation(value) is None}
    if any(len(row[name]) != count for name in lists):
        return
    alone = {name: None if _is_score(name) and count > 1 else row[name] for name in row.keys() - lists}
    if row.get("group") is None and "prompt" not in lists:
        alone["group"] = group
    for index in range(count):
        yield {**alone, **{name: row[name][index] for name in lists}}


def scored_together(row: Mapping[str, Any]) -> bool:
    """Whether several completions have one reward between them."""
    return len(row["completion"]) > 1 and any(
        value is not None and not isinstance(value, list) for name, value in row.items() if name.startswith("reward")
    )


def could_differ(row: Mapping[str, Any]) -> bool:
    """Whether sampling again would have shown: different completions of one prompt, or several prompts.

    Only then are equal lists of completions the same ones written again. At temperature 0, or after a collapse, one
    prompt gets equal completions however often it is asked.
    """
    prompts = row.get("prompt")
    asked = (
        prompts if isinstance(prompts, list) and conversation(prompts) is None else [prompts] * len(row["completion"])
    )
    return len({repr(prompt) for prompt in asked}) > 1 or len({repr(written) for written in row["completion"]}) > 1


def short(path: str) -> str:
    """Name of a single reward without those it stands in: ``accuracy`` of ``rewards.accuracy.score``."""
    name = path.removesuffix(".score")
    for folder in ("rewards", "reward", "scores"):
        for mark in ("/", "."):
            name = name.removeprefix(folder + mark)
    return name.removesuffix("/mean") or path


def of_episode(episode: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
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
