"""Which reader a path gets, and what is said where none fits."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rlmon.audit.readers import READERS, curves, mapped, names, open_source, trl
from rlmon.errors import ReadError

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FOREIGN = GOLDEN / "foreign"


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("runlog-schema-1", "rlmon"),
        ("foreign/trl", "trl"),
        ("foreign/trl-chat", "trl"),
        ("foreign/tensorboard", "tensorboard"),
        ("foreign/verl", "verl"),
        ("foreign/verl-legacy", "verl-legacy"),
        ("foreign/prime-rl", "prime-rl"),
        ("foreign/verifiers", "verifiers"),
        ("foreign/nemo-rl", "nemo-rl"),
        ("foreign/tinker-cookbook", "tinker-cookbook"),
        ("foreign/skyrl", "skyrl"),
        ("foreign/areal", "areal"),
        ("foreign/rft-faultbench", "rft-faultbench"),
    ],
)
def test_every_fixture_is_recognised(name: str, reader: str) -> None:
    run = open_source(GOLDEN / name)
    assert run.reader == reader
    assert run.reader in names()
    assert open_source(GOLDEN / name, reader=reader).shards == run.shards


def test_no_reader_takes_what_another_tool_wrote() -> None:
    """Of the readers of tools, exactly one recognises each fixture of TRL and of mapped files."""
    for name in ("trl", "trl-chat", "verl", "prime-rl", "nemo-rl", "tinker-cookbook", "skyrl", "areal"):
        found = [
            module.NAME for module in READERS if module not in (mapped, curves) and module.recognises(FOREIGN / name)
        ]
        assert found == (["trl"] if name.startswith("trl") else [])


def test_the_most_informative_source_wins_and_the_others_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(FOREIGN / "trl", folder)
    shutil.copytree(FOREIGN / "tensorboard", folder / "runs")
    run = open_source(folder)
    assert run.reader == "trl"
    assert any("tensorboard" in note for note in run.notes)
    assert open_source(folder, reader="tensorboard").reader == "tensorboard"
    shutil.copytree(GOLDEN / "runlog-schema-1", folder / "rlmon")
    run = open_source(folder)
    assert run.reader == "rlmon"
    assert any("trl (in the same folder), tensorboard" in note for note in run.notes)


def test_what_cannot_be_read_gives_way_to_what_can(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(FOREIGN / "tensorboard", folder / "runs")
    (folder / "trainer_state.json").write_text("{broken")
    assert trl.recognises(folder)
    run = open_source(folder)
    assert run.reader == "tensorboard"
    assert any(note.startswith("trl was here too, but") for note in run.notes)


def test_rows_beside_the_curves_of_a_trainer_are_read_with_them(tmp_path: Path) -> None:
    """ms-swift's folder: completions.jsonl, logging.jsonl, args.json, and a trainer state in each checkpoint."""
    (tmp_path / "checkpoint-2").mkdir()
    history = [{"step": step, "loss": 0.1, "entropy": 1.0 / step, "reward": 0.5} for step in (1, 2)]
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(
        json.dumps({"global_step": 2, "log_history": history})
    )
    (tmp_path / "args.json").write_text(json.dumps({"num_generations": 2}))
    (tmp_path / "logging.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    data = json.dumps({"question": "q", "answer": "a"}) + "\n"
    (tmp_path / "data.jsonl").write_text(data * 100)
    assert not open_source(tmp_path).shards  # a data set is nothing that was sampled
    step = {"prompt": ["p", "p"], "completion": ["a", "b"], "right": [1.0, 0.0], "advantages": [1.0, -1.0]}
    lines = [json.dumps({"step": [str(number)] * 2, **step}) for number in (1, 2)]
    (tmp_path / "completions.jsonl").write_text("\n".join(lines))
    run = open_source(tmp_path)
    assert run.scalars["entropy"] == [(1, 1.0), (2, 0.5)]
    assert sum(len(batch.rows) + batch.duplicates for shard in run.shards for batch in shard.read()) == 4
    assert run.group_size == 2
    assert not {"completions", "entropy", "rewards"} & run.lacks.keys()


def test_nothing_there() -> None:
    with pytest.raises(ReadError, match="There is nothing at '/nowhere/at/all'"):
        open_source("/nowhere/at/all")
    with pytest.raises(ReadError):
        open_source("x" * 5_000)
    with pytest.raises(ReadError):
        open_source("nul\0byte")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="is empty"):
        open_source(tmp_path)


def test_no_run_says_what_is_there_and_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "\x1b[31m.txt").write_text("hello")
    with pytest.raises(ReadError) as caught:
        open_source(tmp_path)
    message = str(caught.value)
    assert "'notes.md'" in message
    assert "\x1b" not in message
    for word in ("TRL", "verl", "--reader", "--map"):
        assert word in message
    with pytest.raises(ReadError, match=r"'notes\.md' is no run"):
        open_source(tmp_path / "notes.md")


@pytest.mark.parametrize("name", ["0.pt", "batch.PKL", "training_args.bin"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    # A pickle that would run code when loaded.
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "ran") + b"'\ntR.")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ReadError, match="is a pickle by its name"):
            open_source(path)
    with pytest.raises(ReadError, match="is a pickle by its name"):
        open_source(tmp_path / name, mapping={"completion": "c"})
    assert not (tmp_path / "ran").exists()


def test_an_unknown_reader_names_those_there_are() -> None:
    with pytest.raises(ReadError, match=r"no reader 'csv'; there are rlmon, trl, wandb, .*verl"):
        open_source(FOREIGN / "trl", reader="csv")


def test_a_reader_that_finds_nothing_says_so() -> None:
    with pytest.raises(ReadError):
        open_source(FOREIGN / "verl", reader="trl")
    with pytest.raises(ReadError, match="no file as verl names them"):
        open_source(FOREIGN / "nemo-rl", reader="verl")


def test_a_mapping_goes_before_recognition(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text(json.dumps({"input": "p", "output": "c", "score": 1, "uid": "a_0_0", "n": 4}))
    assert open_source(tmp_path).reader == "verl"
    run = open_source(tmp_path, mapping={"completion": "output", "step": "n"})
    assert run.reader == "mapped"
    rows = [row for shard in run.shards for batch in shard.read() for row in batch.rows.to_pylist()]
    assert [row["step"] for row in rows] == [4]
    with pytest.raises(ReadError, match="without --reader trl"):
        open_source(tmp_path, reader="trl", mapping={"completion": "output"})


def test_names_are_unique() -> None:
    assert len(names()) == len(set(names()))


def test_an_output_folder_that_was_trained_into_twice_says_so(tmp_path: Path) -> None:
    shutil.copytree(FOREIGN / "trl", tmp_path / "out")
    runs = FOREIGN.parent / "cases" / "tb-several-runs-one-folder" / "logs"
    for number, file in enumerate(sorted(runs.iterdir()), start=1):
        (tmp_path / "out" / "runs" / f"Nov29_1{number}-00-00_host").mkdir(parents=True)
        shutil.copy(file, tmp_path / "out" / "runs" / f"Nov29_1{number}-00-00_host" / file.name)
        told = [note for note in open_source(tmp_path / "out").notes if "trained into this folder" in note]
        assert [note[:15] for note in told] == ["2 separate runs"] * (number - 1)
