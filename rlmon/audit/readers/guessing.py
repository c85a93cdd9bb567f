"""Columns of files that no layout describes, by the names that they often have, and which of them are rewards."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import rlmon.audit.readers.shapes as shapes
from rlmon.audit.readers.columns import number
from rlmon.audit.readers.layout import CANONICAL
from rlmon.audit.readers.messages import conversation, written
from rlmon.audit.readers.parsing import literal
from rlmon.audit.readers.table_layout import reward_weights
from rlmon.errors import ReadError

GUESSES: Mapping[str, tuple[str, ...]] = {
    "prompt": (
        "prompt", "prompts", "input", "inputs", "question", "query", "instruction", "problem", "input_prompt",
        "prompt_text", "messages",
    ),
    "completion": (
        "completion", "completions", "response", "responses", "output", "outputs", "generation", "generations",
        "output_response", "model_output", "model_outputs", "model_response", "generated_text", "completion_text",
        "response_text", "candidates", "samples", "solution_str", "text", "message", "answer",
    ),
    "step": (
        "step", "global_step", "global_steps", "train_step", "training_step", "trainer_step", "rollout_step",
        "current_step", "train/global_step", "training/global_step", "iteration", "update", "gen_step", "step_idx",
    ),
    "group": ("group", "group_id", "group_idx", "uid"),
    "advantage": ("advantage", "advantages"),
    "source": ("task", "data_source", "dataset", "source", "language"),
    "split": ("split",),
    "truncated": ("truncated", "is_truncated", "finish_reason", "stop_reason", "stop_condition"),
    "completion_tokens": (
        "completion_tokens", "completion_length", "response_length", "num_tokens", "completion_tokens_count",
    ),
    "tool_calls": ("tool_calls",),
}  # fmt: skip
"""Canonical column to the names it often has, the likeliest first."""
CONVERSATIONS = ("messages", "conversation", "conversations", "chat", "trajectory", "dialog")
"""Names of prompt and completion in one: what stands before the model's first message is the prompt."""
TOTALS = (
    "reward", "score", "total_reward", "reward_total", "total_score", "final_reward", "reward_sum", "sum_reward",
    "rewards", "scores", "return", "total", "sum",
)  # fmt: skip
"""Names of a reward that needs no summing."""
INNER_TOTALS = ("total", "reward", "total_reward", "sum", "final", "score", "overall")
_REWARD_LIKE = re.compile(r"reward|(?:^|[_/. -])scores?(?:$|[_/. -])", re.IGNORECASE)
_GRADED = re.compile(
    r"(?:^|[_/. -])(?:accuracy|acc|correct|correctness|is_correct|passed|success|solved|format|penalty|cosine|language|"
    r"repetition|helpfulness|safety)(?:$|[_/. -])",
    re.IGNORECASE,
)
"""What graders are called where no column is called a reward."""
_OF_REWARDS = re.compile(
    r"(?:^|[_/. -])(?:std|var|min|max|mean|weights?|id|idx|model|name)(?:$|[_/. -])", re.IGNORECASE
)
NOT_REWARDS = frozenset(
    {
        "", "index", "idx", "id", "epoch", "entropy", "kl", "num_turns", "length", "seqlen", "prompt_len", "rank",
        "prompt_tokens", "round", "timestamp", "time",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """What the columns of some records mean."""

    columns: Mapping[str, str]
    """Canonical column to path."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Columns of single rewards and their weights: their sum where ``columns`` has no ``reward``, else parts of it."""
    within: tuple[str, ...] = ()
    """Keys of the lists that the rows are nested in."""
    written: tuple[str, ...] = ()
    """Keys of objects of rewards that were written out as text."""
    question: str = ""
    """What has to be asked since several rewards can be put together in several ways."""
    notes: tuple[str, ...] = ()


def guessed(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Guess | None:
    """What the columns of the records mean; ``None`` where their names do not say enough.

    ``settings``: the trainer's, where they lie beside.
    """
    names = (*GUESSES["completion"], *CONVERSATIONS)
    within = next((path for record in records if (path := shapes.nested_in(record, names))), ())
    rows = [row for record in records for _, row in shapes.flattened(record, within)]
    columns: dict[str, str] = {}
    for canonical, known in GUESSES.items():
        given = [name for name in known if any(row.get(name) is not None for row in rows)]
        # A column of steps that are all missing is one too: its rows are damaged, not of step 0.
        there = [name for name in known if any(name in row for row in rows)] if canonical == "step" else []
        if given or there:
            columns[canonical] = (given or there)[0]
    if "completion" not in columns:
        whole = next((name for name in CONVERSATIONS if any(_is_answered(row.get(name)) for row in rows)), None)
        if whole is None:
            return None
        columns |= {"prompt": whole, "completion": whole}
    written_out = tuple({key: None for row in rows for key, value in row.items() if _is_written_reward(key, value)})
    rows = [row | {key: literal(row[key]) for key in written_out if isinstance(row.get(key), str)} for row in rows]
    guess = with_rewards(Guess(columns=columns, within=within, written=written_out), rows, settings)
    guess = replace(guess, columns={name: guess.columns[name] for name in CANONICAL if name in guess.columns})
    return guess if guess.rewards or guess.question or {"prompt", "reward"} & guess.columns.keys() else None


def _is_written_reward(key: str, value: Any) -> bool:
    """Whether it is an object of rewards that was written out as text, as CSV has it."""
    return bool(_REWARD_LIKE.search(key)) and isinstance(value, str) and isinstance(literal(value), Mapping)


def _is_answered(value: Any) -> bool:
    """Whether it is a conversation in which the model has spoken."""
    messages = written(value) if isinstance(value, str) else conversation(value)
    return messages is not None and any(message.get("role") == "assistant" for message in messages)


def with_rewards(guess: Guess, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Guess:
    """The guess with what was maximised: a total, else the sum where it is documented, else a question."""
    free = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in guess.columns.values()]
    scores = [name for name in free if any(_is_score(row.get(name)) for row in rows)]
    objects = {name: found for name in free if _REWARD_LIKE.search(name) and (found := _scores_in(name, rows))}
    total = next((name for name in TOTALS if name in scores), None)
    inside = {path: weight for found in objects.values() for path, weight in found.items()}
    inner = next((f"{name}.{key}" for name in objects for key in INNER_TOTALS if f"{name}.{key}" in inside), None)
    like = [name for name in scores if _is_reward_like(name)]
    if total is not None or inner is not None:
        reward = total if total is not None else inner
        parts = {name: 1.0 for name in like if name != reward} or {p: w for p, w in inside.items() if p != reward}
        return replace(guess, columns={**guess.columns, "reward": str(reward)}, rewards=parts)
    if inside:
        weighed = any(path.endswith(".score") for path in inside)
        return _of_parts(guess, inside, summed=weighed, why="their own weights")
    if "advantage" in guess.columns and "prompt" in guess.columns:
        parts = dict.fromkeys(_between(free, scores, rows, guess.columns) or like, 1.0)
        weights = reward_weights(settings, len(parts))
        given = isinstance(settings.get("reward_weights"), list) and weights == settings["reward_weights"]
        why = "reward_weights as the settings beside have them" if given else "weights of 1, the default of its trainer"
        return _of_parts(guess, dict(zip(parts, weights, strict=True)), summed=True, why=why)
    graded = [name for name in scores if _GRADED.search(name) and not _OF_REWARDS.search(name)]
    return _of_parts(guess, dict.fromkeys(like or graded, 1.0), summed=False, why="")


def _of_parts(guess: Guess, parts: Mapping[str, float], *, summed: bool, why: str) -> Guess:
    """The guess with one reward, with the sum of several, or with the question which of them it was."""
    if not parts:
        return guess
    if len(parts) == 1:
        return replace(guess, columns={**guess.columns, "reward": next(iter(parts))})
    if summed:
        note = f"reward is the sum of {_quoted(parts)} ({why}). Choose others with --map reward=a+b."
        return replace(guess, rewards=parts, notes=(*guess.notes, note))
    known = ",".join(f"{ours}={theirs}" for ours, theirs in guess.columns.items())
    names = list(parts)[:8]
    question = (
        f"there are {len(parts)} reward columns, {_quoted(parts)}, and no total, and nothing here says how they were "
        f"put together. Which was trained on? Type --map reward={'+'.join(names)} for their sum, or "
        f"--map reward={names[0]} for one of them (with the other columns: {known})."
    )
    return replace(guess, question=question)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:60]) for name in list(names)[:8])


def _is_score(value: Any) -> bool:
    """A number, or a list of them: one for each completion."""
    value = shapes.listed(value)
    if isinstance(value, list):
        return any(number(item) is not None for item in value) and all(
            i is None or number(i) is not None for i in value
        )
    return number(value) is not None


def _is_reward_like(name: str) -> bool:
    return bool(_REWARD_LIKE.search(name)) and not _OF_REWARDS.search(name)


def _scores_in(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Paths and weights of the numbers in an object of rewards: plain ones, or with ``score`` and ``weight`` each."""
    found: dict[str, float] = {}
    for row in rows:
        value = row.get(name)
        for key, score in value.items() if isinstance(value, Mapping) else ():
            if isinstance(score, Mapping) and number(score.get("score")) is not None:
                weight = number(score.get("weight"))
                found[f"{name}.{key}.score"] = 1.0 if weight is None else weight
            elif _is_score(score):
                found[f"{name}.{key}"] = 1.0
    return found


def _between(
    free: Sequence[str], scores: Sequence[str], rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> list[str]:
    """Reward functions of a table as TRL and ms-swift write it: they stand between completion and advantage."""
    order = list(rows[0])
    begin, end = (order.index(columns[name]) if columns[name] in order else -1 for name in ("completion", "advantage"))
    inside = [name for name in scores if name in order and begin < order.index(name) < end]
    return [name for name in inside if name.lower() not in NOT_REWARDS and not _OF_REWARDS.search(name)]


def summed(path: str, there: Collection[str]) -> dict[str, float]:
    """Columns and weights of ``a+b`` or ``a+0.5*b``; empty where ``path`` is no sum, or a column has that name."""
    if path in there or "+" not in path:
        return {}
    parts: dict[str, float] = {}
    for term in path.split("+"):
        weight, star, name = term.strip().partition("*")
        factor = number(weight) if star else 1.0
        name = name.strip() if star else weight
        if not name or factor is None:
            raise ReadError(f"--map reward={path} is no sum of columns such as reward=a+b or reward=a+0.5*b.")
        parts[name] = factor
    return parts
