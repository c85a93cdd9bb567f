"""Blends that cannot be finished, and folders that somebody else made: nothing half-written, nothing read that is not
weights of the folder."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import made_weights as made
import pytest
import torch

import rlmon
from rlmon.blending import writing
from rlmon.blending.making import open_pair, write
from rlmon.errors import WeightsError

ROOT = Path(__file__).resolve().parents[2]
BASE = {"a": torch.zeros(64), "b": torch.zeros(64)}
TRAINED = {"a": torch.ones(64), "b": torch.ones(64)}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    base = made.model(tmp_path / "base", BASE)
    return base, made.model(tmp_path / "rl", TRAINED, shards=[["a"], ["b"]]), tmp_path / "out"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_fills_up_leaves_what_was_there(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    base, trained, out = folders
    if earlier:
        rlmon.blend(base, trained, 0.25, out)
    before = made.files(out) if earlier else None
    really, calls = os.fsync, 0

    def full(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=r"cannot write .*out: the disk is full\. Nothing of the blend is left"):
        rlmon.blend(base, trained, 0.5, out)
    assert left(out.parent) == ["base", *(["out"] if earlier else []), "rl"]
    assert not earlier or made.files(out) == before


def test_too_little_room_is_said_before_anything_is_written(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, trained, out = folders
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**7})())
    with pytest.raises(
        WeightsError, match=r"A blend of 0\.07 GB does not fit on the disk of .*, which has 0\.01 GB free"
    ):
        rlmon.blend(base, trained, 0.5, out)
    assert left(out.parent) == ["base", "rl"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_what_is_stopped_is_removed(folders: tuple[Path, Path, Path], stop: type[BaseException]) -> None:
    base, trained, out = folders

    def progress(done: int, total: int) -> None:
        assert [name for name in left(out.parent) if name.endswith(".unfinished")]
        if done > total / 3:
            raise stop

    with pytest.raises(stop):
        rlmon.blend(base, trained, 0.5, out, progress=progress)
    assert left(out.parent) == ["base", "rl"]


def test_a_place_that_cannot_be_taken_gives_the_earlier_blend_back(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, trained, out = folders
    rlmon.blend(base, trained, 0.25, out)
    before = made.files(out)
    really = os.rename

    def rename(source: Any, target: Any) -> None:
        if str(source).endswith(".unfinished"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(WeightsError, match="Input/output error"):
        rlmon.blend(base, trained, 0.5, out)
    assert made.files(out) == before
    assert left(out.parent) == ["base", "out", "rl"]


SLOW = """
import sys, time
import rlmon.blending.writing as writing
really = writing.stretches
def slowly(*arguments):
    for stretch in really(*arguments):
        yield stretch
        print("a stretch", flush=True)
        time.sleep(0.2 if {ends} else 60)
writing.stretches = slowly
from rlmon.cli import main
main()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_killed_leaves_nothing_half_written(
    folders: tuple[Path, Path, Path], how: signal.Signals
) -> None:
    base, trained, out = folders
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW.format(ends=False), "blend", base, trained, "--alpha", ".5", "--out", out]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        # In the background of a shell an interrupt is ignored by what it starts.
        assert process.stdout is not None
        assert process.stdout.readline() == b"a stretch\n"
        process.send_signal(how)
        if how is signal.SIGINT and _ignores_interrupts():
            process.kill()
            how = signal.SIGKILL
        process.wait(30)
    unfinished = [name for name in left(out.parent) if name.endswith(".unfinished")]
    assert not out.exists()
    assert len(unfinished) == (how is signal.SIGKILL)
    # The next one says what was left, and is whole.
    notes = rlmon.blend(base, trained, 0.5, out).notes
    assert [note for note in notes if "was stopped and left" in note] == list(notes)
    assert len(notes) == (how is signal.SIGKILL)
    assert made.weights(out)["a"].unique().tolist() == [0.5]


def _ignores_interrupts() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_file_that_cannot_be_read(folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, trained, out = folders
    really = open

    def fail(file: Any, *how: Any, **more: Any) -> Any:
        if "base" in str(file):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(file, *how, **more)

    monkeypatch.setattr(writing, "open", fail, raising=False)
    with pytest.raises(WeightsError, match=r"^cannot read .*base/model\.safetensors: Input/output error\.$"):
        rlmon.blend(base, trained, 0.5, out)
    monkeypatch.undo()
    pair = open_pair(base, trained)
    os.truncate(base / "model.safetensors", (base / "model.safetensors").stat().st_size - 1)
    with pytest.raises(WeightsError, match="became shorter while it was read"):
        write(pair, 0.5, out)
    assert left(out.parent) == ["base", "rl"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "its tensors end at byte .* and the file at"),
        (lambda data: data[:20], "its header is longer than the file"),
        (lambda data: b"", "its header is longer than the file"),
        (lambda data: data + b"x", "its tensors end at byte"),
        (lambda data: (10**15).to_bytes(8, "little") + data[8:], "its header is longer than the file"),
        (lambda data: data.replace(b'"F32"', b'"F64"', 1), "takes 512 bytes and has 256"),
        (lambda data: data.replace(b"[64]", b"[-4]", 1), "no shape and place of whole numbers"),
        (lambda data: data.replace(b'"b":', b'"a":', 1), "a name stands in its header twice"),
        (lambda data: data.replace(b"[256,512]", b"[000,256]", 1), "is no whole safetensors file"),
        (lambda data: b"PK\x03\x04" + data, "is no whole safetensors file"),
    ],
)
def test_a_file_that_is_cut_off_or_made_up(folders: tuple[Path, Path, Path], damage: Any, said: str) -> None:
    base, trained, out = folders
    file = base / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(WeightsError, match=said):
        rlmon.blend(base, trained, 0.5, out)


@pytest.mark.parametrize("config", [{}, {"quantization_config": {"quant_method": "fp8"}}])
def test_weights_of_8_bits_are_not_taken_for_a_damaged_file(
    tmp_path: Path, folders: tuple[Path, Path, Path], config: dict[str, Any]
) -> None:
    small = made.model(tmp_path / "small", {"w": torch.ones(4).to(torch.float8_e4m3fn)}, config=config)
    said = "are quantised.*before it was quantised" if config else "w has values of the type F8_E4M3.*Give the model in"
    with pytest.raises(WeightsError, match=said) as raised:
        rlmon.blend(small, folders[1], 0.5, tmp_path / "out")
    assert "cut off" not in str(raised.value)


def test_a_link_to_itself_is_no_mistake_of_rlmon(tmp_path: Path, folders: tuple[Path, Path, Path]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(WeightsError, match="loop"):
        rlmon.blend(tmp_path / "loop", folders[1], 0.5, tmp_path / "out")


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["BOMB"],))


def test_pickles_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "ran"))
    base = made.model(tmp_path / "base", BASE)
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
        folder = tmp_path / f"rl-{name}"
        folder.mkdir()
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(WeightsError, match=f"pickled .{name}"):
            rlmon.blend(base, folder, 0.5, tmp_path / "out")
    # Beside safetensors it is nobody's business.
    trained = made.model(tmp_path / "rl", TRAINED)
    (trained / "training_args.bin").write_bytes(pickle.dumps(Bomb()))
    rlmon.blend(base, trained, 0.5, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "ran").exists(), "it would have been seen"


@pytest.mark.parametrize(
    "name",
    ["../base/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\x.safetensors", ".safetensors", "x.bin"],
)  # fmt: skip
def test_an_index_that_names_files_elsewhere(folders: tuple[Path, Path, Path], name: str) -> None:
    base, trained, out = folders
    index = trained / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightsError, match="only safetensors files in the folder itself are read"):
        rlmon.blend(base, trained, 0.5, out)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": 1}}', "not json", '{"weight_map": []}'])
def test_an_index_that_is_none(folders: tuple[Path, Path, Path], index: str) -> None:
    base, trained, out = folders
    (trained / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=r"is not the JSON that it should be|has no weight_map"):
        rlmon.blend(base, trained, 0.5, out)


def test_an_index_and_its_files_that_do_not_agree(folders: tuple[Path, Path, Path]) -> None:
    base, trained, out = folders
    first, second = (f"model-0000{at}-of-00002.safetensors" for at in (1, 2))
    index = trained / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": first, "b": second, "c": second}}))
    with pytest.raises(WeightsError, match=r"names tensors that are not in their files: c\. Copy the whole folder"):
        rlmon.blend(base, trained, 0.5, out)
    (trained / second).write_bytes((trained / first).read_bytes())
    with pytest.raises(WeightsError, match=f"CHECKPOINT has a twice, in {first} and {second}"):
        rlmon.blend(base, trained, 0.5, out)
    (trained / second).unlink()
    with pytest.raises(WeightsError, match=f"names {second}, which is not there"):
        rlmon.blend(base, trained, 0.5, out)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    base, trained = made.model(tmp_path / "base", BASE), made.model(tmp_path / "rl", TRAINED)
    secret = tmp_path / "secret"
    secret.write_bytes((trained / name).read_bytes() if (trained / name).exists() else b"mine")
    (trained / name).unlink(missing_ok=True)
    (trained / name).symlink_to(secret)
    with pytest.raises(WeightsError, match=f"{name} is a link that leads out of the folder"):
        rlmon.blend(base, trained, 0.5, tmp_path / "out")
    assert left(tmp_path) == ["base", "rl", "secret"]


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path: Path) -> None:
    base, trained = made.model(tmp_path / "base", BASE), made.model(tmp_path / "rl", TRAINED)
    (trained / "config.json").unlink()
    os.mkfifo(trained / "config.json")
    began = time.monotonic()
    with pytest.raises(WeightsError, match="it is no plain file"):
        rlmon.blend(base, trained, 0.5, tmp_path / "out")
    assert time.monotonic() - began < 5
