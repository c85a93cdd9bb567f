"""Looking at a dataset runs nothing of the user's: no transform, no decoding, no class of their own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset

import rlmon
from rlmon.errors import ConfigError
from rlmon.keys import source_key
from rlmon.trl import RLMon, RLMonConfig
from rlmon.trl.prompts import SourceMap
from rlmon.trl.stored import stored_column

pytestmark = pytest.mark.trl

QUIET: dict[str, Any] = {"rlmon_wandb": False, "rlmon_console": False, "rlmon_strict": True, "rlmon_base_kl": "off"}
TWO_KINDS = {"prompt": [f"{i} + {i} = how many" if i % 2 else f"get {i} apples and print" for i in range(24)]}


def drawing(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A transform with chance of its own: every look at a row moves all three generators."""
    random.random(), np.random.random(), torch.rand(1)
    return batch


class Own(Dataset):
    """A dataset of the user's own class, whose rows cost a random number."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        type(self).looks += 1
        torch.rand(1)
        return super().__getitem__(key)


@pytest.mark.parametrize("kind", ["with_transform", "own class"])
def test_rows_with_chance_of_their_own_end_with_the_same_weights(tmp_path: Path, kind: str) -> None:
    ended, looks, sources = [], [], []
    for watched in (False, True):
        plain, Own.looks = Dataset.from_dict(TWO_KINDS), 0
        data: Any = Own(plain.data) if kind == "own class" else plain.with_transform(drawing)
        made = tiny.trainer(
            tmp_path / f"{watched}", train=data, policy=tiny.model(), per_device_train_batch_size=32, max_steps=3
        )
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        if watched:
            monitor = RLMon(made, RLMonConfig(**QUIET))
        made.train()
        # Not Python's own generator: the type checker of the test run draws from it.
        ended.append((tiny.weights(made), torch.get_rng_state().tolist()))
        looks.append(Own.looks)
        if watched:
            log = rlmon.open_run(monitor.log_dir)
            sources = [{block.source for block in record.blocks} for record in log.step_records()]
            (row,) = [row for row in log.header.capabilities if row["signal"] == "source"]
            assert "from the rows of the first training round" in row["reason"]
    assert tiny.same_weights(ended[0][0], ended[1][0])
    assert ended[0][1:] == ended[1][1:]
    assert looks[0] == looks[1]
    # 8 prompts a round, half of each kind on average: templates that four of them share have a name.
    assert len(set().union(*sources)) == 2
    assert all(names <= sources[0] | {source_key("other")} for names in sources)


def test_an_image_that_cannot_be_read_in_a_row_that_is_never_drawn(tmp_path: Path) -> None:
    features = datasets.Features({"prompt": datasets.Value("string"), "picture": datasets.Image()})
    data = Dataset.from_dict(
        {"prompt": TWO_KINDS["prompt"], "picture": [str(tmp_path / "there is none.png")] * 24}, features=features
    )
    with pytest.raises(FileNotFoundError):
        data[0]
    sources = SourceMap.build(data, None, 8)
    assert len({sources.source_of({"prompt": prompt}) for prompt in TWO_KINDS["prompt"]}) == 2
    assert not sources.learning
    # Asked for by name, a column of pictures is no reason to decode them either.
    assert SourceMap.build(data, "picture", 8).column == "picture"
    assert stored_column(data, "picture") is None


def test_a_stored_column_is_what_the_rows_show() -> None:
    """Also where rows are mapped, shuffled, selected, concatenated; conversations and lists included."""
    talk = [[{"role": "user", "content": f"{i}"}] for i in range(30)]
    data = Dataset.from_dict({"prompt": talk, "n": list(range(30)), "parts": [[i, i] for i in range(30)]})
    mapped = datasets.concatenate_datasets([data, data.filter(lambda row: row["n"] % 3 == 0)]).shuffle(seed=1)
    for one in (data, mapped, mapped.select([7, 3, 3, 1]), data.select(range(5, 9))):
        for name in ("prompt", "n", "parts"):
            column = stored_column(one, name)
            assert column is not None
            assert [column[i] for i in range(len(column))] == [row[name] for row in one]
    assert stored_column(data, "absent") is None
    assert stored_column(data.with_format("torch"), "n") is None
    assert stored_column(data.with_transform(lambda batch: {"prompt": ["x"]}), "prompt") is None
    assert stored_column(data.with_format(None, columns=["n"]), "prompt") is None
    assert stored_column([{"prompt": "a"}], "prompt") is None
    assert stored_column(data.to_iterable_dataset(), "prompt") is None

    class Mine(Dataset):
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("looked at")

    mine = Mine(data.data)
    assert stored_column(mine, "prompt") is None
    assert SourceMap.build(mine, None, 8).learning


def test_the_rows_of_all_ranks_decide_alike() -> None:
    """Rank 0 has drawn one kind and rank 1 the other: alone each would call its own rows all."""
    rows = [{"prompt": prompt} for prompt in TWO_KINDS["prompt"]]
    shares = [rows[0::2], rows[1::2]]
    told: list[str] = []
    first = [SourceMap.build(iter(()), None, 8) for _ in shares]
    for one, mine in zip(first, shares, strict=True):  # what each would tell
        one.learn(mine, lambda said: told.extend(said) or said)  # type: ignore[func-returns-value]
    assert {one.source_of(row) for one, mine in zip(first, shares, strict=True) for row in mine} == {"all"}
    ranks = [SourceMap.build(iter(()), None, 8) for _ in shares]
    for one, mine in zip(ranks, shares, strict=True):
        one.learn(mine, lambda said: told)
    assert [one.source_of(row) for one in ranks for row in rows] == 2 * [ranks[0].source_of(row) for row in rows]
    assert len({ranks[1].source_of(row) for row in rows}) == 2
    resumed = SourceMap.build(iter(()), None, 8)
    state = ranks[0].state()
    assert state is not None
    resumed.load(state)
    assert [resumed.source_of(row) for row in rows] == [ranks[0].source_of(row) for row in rows]
    # A row that cannot be read on one rank: it is a fault there, and all ranks still agree.
    odd = SourceMap.build(iter(()), None, 8)
    with pytest.raises(TypeError):
        odd.learn([{"prompt": 3}], lambda said: told)
    assert odd.state() == state
    by_column = SourceMap.build(iter(()), None, 8)
    by_column.learn([{"prompt": "a", "task": "x"}], lambda said: said)
    assert [by_column.source_of({"task": task}) for task in ("x", "y", np.int64(3))] == ["x", "y", "3"]


def test_a_source_column_that_only_the_transform_makes(tmp_path: Path) -> None:
    plain = Dataset.from_dict(TWO_KINDS)
    with pytest.raises(ConfigError, match="'kind'"):
        SourceMap.build(plain, "kind", 8)
    made = plain.with_transform(lambda batch: batch | {"kind": ["k"] * len(batch["prompt"])})
    assert SourceMap.build(made, "kind", 8).source_of(made[0]) == "k"
