"""The TensorBoard reader, against TensorBoard's own reader and writer."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlmon.audit.readers import tensorboard
from rlmon.audit.run import OwnWord, Remark
from rlmon.errors import ReadError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "foreign"
EVENTS = next((GOLDEN / "tensorboard").glob("events.out.tfevents.*"))


def float32(value: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, Any]) -> bytes:
    """Protobuf by hand: integers as varints, floats as fixed32, bytes with their length."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def frame(event: bytes) -> bytes:
    return struct.pack("<Q", len(event)) + bytes(4) + event + bytes(4)


def scalar(tag: str, step: int, value: float) -> bytes:
    return frame(message((2, step), (5, message((1, message((1, tag.encode()), (2, value)))))))


def write(folder: Path, name: str, values: Sequence[tuple[str, int, float]], tail: bytes = b"") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{name}"
    path.write_bytes(b"".join(scalar(*value) for value in values) + tail)
    return path


def test_golden_scalars_are_the_trainers_log_in_single_precision() -> None:
    run = tensorboard.open_run(GOLDEN / "tensorboard")
    train: dict[str, list[tuple[int, float]]] = {}
    evals: dict[str, list[tuple[int, float]]] = {}
    for entry in json.loads((GOLDEN / "wandb-trl" / "log_history.json").read_text()):
        if "train_runtime" not in entry:
            for key, value in entry.items():
                if key not in ("step", "epoch") and value is not None:
                    side, name = (evals, key[5:]) if key.startswith("eval_") else (train, key)
                    side.setdefault(name, []).append((entry["step"], float32(value)))
    assert run.scalars == train
    assert run.eval_scalars == evals
    assert not run.shards
    assert "completions/*.parquet" in run.lacks["completions"]
    # transformers writes its settings as text.
    assert (run.group_size, run.config["reward_weights"], run.config["beta"]) == (4, [1.0, 0.125], 0.0)


def test_golden_is_what_tensorboards_own_reader_finds() -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    content, events = EVENTS.read_bytes(), []
    while content:
        (length,) = struct.unpack_from("<Q", content)
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    own = [
        (value.tag, event.step, event.wall_time, value.simple_value)
        for event in events
        for value in event.summary.value
        if value.HasField("simple_value")
    ]
    found = [value for value in tensorboard._values(EVENTS, tensorboard.Damage()) if isinstance(value[3], float)]
    assert found == own
    assert len(own) > 200


def test_tensors_of_every_type_are_numbers(tmp_path: Path) -> None:
    """TF2's writers use tensors: TensorBoard's own protobuf makes them."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    made = {
        "float": TensorProto(dtype=1, float_val=[0.5]),
        "float_raw": TensorProto(dtype=1, tensor_content=struct.pack("<f", -0.25)),
        "double": TensorProto(dtype=2, double_val=[0.1]),
        "int32": TensorProto(dtype=3, int_val=[-7]),
        "int64": TensorProto(dtype=9, int64_val=[2**40]),
        "int64_raw": TensorProto(dtype=9, tensor_content=(-3).to_bytes(8, "little", signed=True)),
        "two": TensorProto(dtype=1, float_val=[1.0, 2.0]),
        "text": TensorProto(dtype=7, string_val=[b"hello"]),
    }
    values = [Summary.Value(tag=tag, tensor=tensor) for tag, tensor in made.items()]
    event = Event(step=3, summary=Summary(value=values)).SerializeToString()
    (tmp_path / "events.out.tfevents.1.host").write_bytes(frame(event))
    assert tensorboard.open_run(tmp_path).scalars == {
        "float": [(3, 0.5)], "float_raw": [(3, -0.25)], "double": [(3, 0.1)],
        "int32": [(3, -7.0)], "int64": [(3, float(2**40))], "int64_raw": [(3, -3.0)],
    }  # fmt: skip


def test_a_later_file_supersedes_what_it_goes_back_behind(tmp_path: Path) -> None:
    write(tmp_path, "9.host.1.0", [("train/loss", step, 1.0) for step in (1, 2, 3, 4)])
    write(tmp_path, "10.host.2.0", [("train/loss", step, 2.0) for step in (3, 4, 5)])  # 10 is after 9
    run = tensorboard.open_run(tmp_path)
    assert run.scalars == {"loss": [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]}
    assert "2 event files" in run.notes[1]


def text(tag: str, step: int, words: str) -> bytes:
    tensor = message((1, 7), (8, words.encode()))
    return frame(message((2, step), (5, message((1, message((1, f"{tag}/text_summary".encode()), (8, tensor)))))))


def test_what_the_run_said_of_itself_less_what_a_later_attempt_superseded(tmp_path: Path) -> None:
    said = [
        text("rlmon/verdict", 1, "pass"),
        text("rlmon/findings/kl-drift", 2, "**WARN** kl&#45;drift: far away&#46;"),
        text("rlmon/findings/format-collapse", 4, "**FAIL** format&#45;collapse: formats fell&#46;"),
        text("rlmon/verdict", 4, "fail: WARN kl&#45;drift: FAIL format&#45;collapse"),
        text("rlmon/findings/<b>", 4, "**FAIL** of no detector"),
        text("rlmon/findings/length-growth", 4, "of no severity"),
        text("rlmon/verdict", 4, "splendid"),
    ]
    drift = Remark(detector="kl-drift", severity="warn", step=2)
    write(tmp_path, "1.host", [("train/loss", step, 1.0) for step in (1, 2, 3, 4)], b"".join(said))
    word = tensorboard.open_run(tmp_path).own_word
    assert word == OwnWord(verdict="fail", remarks=[drift, Remark(detector="format-collapse", severity="fail", step=4)])
    later = text("rlmon/verdict", 3, "warn: WARN kl&#45;drift")
    write(tmp_path, "2.host", [("train/loss", step, 1.0) for step in (3, 4, 5)], later)
    assert tensorboard.open_run(tmp_path).own_word == OwnWord(verdict="warn", remarks=[drift])
    write(tmp_path / "unwatched", "1.host", [("train/loss", 1, 1.0)])
    assert tensorboard.open_run(tmp_path / "unwatched").own_word is None


def test_starts_of_one_output_folder_are_one_run(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "Nov25_10-00-00_host", "1.host", [("train/loss", 1, 1.0), ("train/loss", 2, 1.0)])
    write(tmp_path / "runs" / "Nov25_11-00-00_host", "2.host", [("train/loss", 2, 2.0)])
    assert tensorboard.recognises(tmp_path)
    assert tensorboard.open_run(tmp_path).scalars == {"loss": [(1, 1.0), (2, 2.0)]}


def at(folder: Path, name: str, steps: Iterable[int], seconds: float, tag: str = "train/loss") -> Path:
    """A file with one scalar a step and a second between two."""
    path = folder / f"events.out.tfevents.{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for number, step in enumerate(steps):
            value = message((1, message((1, tag.encode()), (2, seconds))))
            file.write(frame(b"\x09" + struct.pack("<d", seconds + number) + message((2, step), (5, value))))
    return path


def test_runs_of_one_folder_are_told_apart_by_steps_and_clock(tmp_path: Path) -> None:
    first = at(tmp_path, "1.host.1.0", range(1, 7), 100.0)
    resumed = at(tmp_path, "2.host.2.0", range(5, 9), 200.0)
    at(tmp_path, "3.host.2.0", range(5, 9), 200.0, tag="hparams/x")  # something else of the same run
    anew = at(tmp_path, "4.host.3.0", range(1, 4), 300.0)
    beside = at(tmp_path, "5.host.4.0", range(1, 6), 300.5)  # while the one before still ran
    run = tensorboard.open_run(tmp_path)
    assert run.scalars == {"loss": [(step, 300.5) for step in range(1, 6)]}
    said = " ".join(run.notes)
    assert "3 separate runs lie here: the one of 5 steps, 1 to 5 in 'events.out.tfevents.5.host.4.0' was read" in said
    assert "set aside: 8 steps, 1 to 8 in 'events.out.tfevents.3.host.2.0'; 3 steps, 1 to 3 in" in said
    joined = [(step, 100.0 if step < 5 else 200.0) for step in range(1, 9)]
    assert tensorboard.open_run(first).scalars["loss"] == tensorboard.open_run(resumed).scalars["loss"] == joined
    assert "after step 6 it goes on at 5" in " ".join(tensorboard.open_run(first).notes)
    assert tensorboard.open_run(anew).scalars == {"loss": [(step, 300.0) for step in (1, 2, 3)]}
    places = tensorboard.runs_at(tmp_path)
    assert [place.name.split(".")[3] for place in places] == ["3", "4", "5"]
    assert places[-1] == beside
    assert tensorboard.runs_at(first) == []


@pytest.mark.parametrize(
    ("steps", "runs"),
    [
        (range(10, 60, 10), 2),  # logging_steps=10, from the start
        (range(20, 60, 10), 1),  # resumed at checkpoint-10
        (range(0, 9), 2),
        (range(51, 60), 1),
        ([1, 10, 20], 2),  # logging_first_step
    ],
)
def test_a_run_from_the_start_is_another_run(steps: Iterable[int], runs: int, tmp_path: Path) -> None:
    at(tmp_path, "1.host", range(1, 51), 100.0)
    at(tmp_path, "2.host", steps, 1000.0)
    assert len(tensorboard.runs_at(tmp_path)) == (runs if runs > 1 else 0)


def test_twenty_three_files_are_twenty_three_runs(tmp_path: Path) -> None:
    for number in range(23):
        at(tmp_path, f"{number}.host", range(1, 4 + number), 100.0 * number)
    assert len(tensorboard.runs_at(tmp_path)) == 23
    assert "23 separate runs" in tensorboard.open_run(tmp_path).notes[-1]


def test_several_runs_are_listed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, "1.host", [("loss", 1, 1.0)])
    with pytest.raises(ReadError, match=r"2 TensorBoard runs: 'a', 'b'"):
        tensorboard.open_run(tmp_path)
    assert tensorboard.open_run(tmp_path / "a").run_id == "a"
    assert tensorboard.open_run(tmp_path / "b" / "events.out.tfevents.1.host").run_id == "b"


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", "1.host", [("stolen", 1, 1.0)])
    run = tmp_path / "run"
    write(run, "2.host", [("loss", 1, 1.0)])
    (run / "events.out.tfevents.3.host").symlink_to(outside)
    assert tensorboard.open_run(run).scalars == {"loss": [(1, 1.0)]}
    only_links = tmp_path / "links"
    only_links.mkdir()
    (only_links / "tensorboard").symlink_to(outside.parent)
    assert not tensorboard.recognises(only_links)


def test_every_torn_tail_leaves_what_was_before(tmp_path: Path) -> None:
    whole = [("loss", step, float(step)) for step in range(1, 6)]
    content = write(tmp_path, "1.host", whole).read_bytes()
    size = len(content) // 5
    for cut in range(size, len(content) + 1):
        (tmp_path / "events.out.tfevents.1.host").write_bytes(content[:cut])
        run = tensorboard.open_run(tmp_path)
        assert run.scalars["loss"] == [(step, float(step)) for step in range(1, cut // size + 1)]
        assert any("1 event files end in a torn" in note for note in run.notes) == (cut % size != 0)


def test_a_length_out_of_bounds_ends_the_file(tmp_path: Path) -> None:
    write(tmp_path, "1.host", [("loss", 1, 1.0)], tail=struct.pack("<Q", 1 << 60) + bytes(100))
    run = tensorboard.open_run(tmp_path)
    assert run.scalars == {"loss": [(1, 1.0)]}
    assert "1 event files end" in run.notes[-1]


def test_a_damaged_message_is_passed_over(tmp_path: Path) -> None:
    for tail in (b"\x2a\xff\x01", b"\x80" * 11, b"\x2f", b"\x12"):
        write(tmp_path, "1.host", [("loss", 1, 1.0)], tail=frame(tail) + scalar("loss", 2, 2.0))
        run = tensorboard.open_run(tmp_path)
        assert run.scalars == {"loss": [(1, 1.0), (2, 2.0)]}
        assert "1 records were passed over" in run.notes[-1]


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"\xff" * 500)
    with pytest.raises(ReadError, match="no scalar that can be read"):
        tensorboard.open_run(tmp_path)
    with pytest.raises(ReadError, match="holds no TensorBoard files"):
        tensorboard.open_run(tmp_path / "nowhere")
