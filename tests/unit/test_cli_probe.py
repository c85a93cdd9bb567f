"""`rlmon probe models` on the command line: what it prints and refuses, and with which exit code it leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny_pairs
from called import Rlmon

from rlmon.lab.bases import BASE_DIR

SHORT = ["--samples", 4, "--max-new-tokens", 8]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs.moved(tmp_path_factory.mktemp("probe") / "rl", by=0.05)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return tiny_pairs.asked(tmp_path / "prompts.jsonl", 6)


def test_a_probe_from_beginning_to_end(rlmon: Rlmon, trained: Path, prompts: Path, tmp_path: Path) -> None:
    how = ["--prompts", prompts, *SHORT]
    left = rlmon("probe", "models", BASE_DIR, trained, *how, "--format", "json", "--fail-on", "never")
    assert left.code == 0, left.err
    found = json.loads(left.out)
    (folder,) = (tmp_path / "rlmon-probe").iterdir()
    assert (found["samples"], found["prompts"]) == (f"rlmon-probe/{folder.name}", 6)
    assert folder.name.startswith("rl-")
    assert found["success"] == "the final answer is that of the column answer"
    assert [sum(counts) for counts in zip(*found["formats"].values(), strict=True)] == [24, 24]
    stated = {one["id"]: one for one in found["statements"]}
    assert stated["kl-checkpoint-base"]["checkpoint"] > 0.3
    assert "rlmon: base, completions: 6 prompts, 4 completions of each." in left.err
    # Called again it samples nothing; other rewards are of the same completions.
    again = rlmon("probe", "models", BASE_DIR, trained, *how, "--reward", "rlmon.lab.task:reward_correct",
                  "--html", tmp_path / "p.html")  # fmt: skip
    assert again.code == int(found["verdict"] == "fail")
    assert "completions of each" not in again.err
    assert again.out.split()[:2] == ["base", str(BASE_DIR)]
    assert "reward_correct above 0.5" in again.out
    page = (tmp_path / "p.html").read_text()
    assert all(f'id="{one}"' in page for one in ("h-compared", "h-formats", "h-examples"))
    assert len(list((tmp_path / "rlmon-probe").iterdir())) == 1


def test_too_few_prompts_are_no_pass(rlmon: Rlmon, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("1 + 1 = \n")
    how = ["--prompts", tmp_path / "p.txt", "--samples", 2, "--max-new-tokens", 2, "--format", "markdown"]
    left = rlmon("probe", "models", BASE_DIR, trained, *how)
    assert (left.code, left.out.splitlines()[0][2:]) == (0, " 🟠 rlmon probe: UNSURE")
    assert "1 prompts can be compared, 4 are needed" in left.out
    assert rlmon("probe", "models", BASE_DIR, trained, *how, "--strict").code == 3


def test_a_folder_of_another_pair_is_refused(rlmon: Rlmon, trained: Path, prompts: Path, tmp_path: Path) -> None:
    how = ["--prompts", prompts, "--samples", 2, "--max-new-tokens", 1, "--out", tmp_path / "out"]
    assert rlmon("probe", "models", BASE_DIR, trained, *how, "--fail-on", "never").code == 0
    other = tiny_pairs.moved(tmp_path / "other", by=0.01)
    left = rlmon("probe", "models", BASE_DIR, other, *how, "--seed", 1)
    assert (left.code, left.out, left.err.count("\n")) == (2, "", 1)
    assert "holds samples of something else: checkpoint, seed differ from what is asked now" in left.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    left = rlmon("probe", "models", BASE_DIR, trained, *how[:-1], tmp_path / "mine")
    assert "--out has to be a folder that is new or of this command" in left.err
    # Two calls at once leave a batch twice: its rows would be those of other prompts.
    twice = tmp_path / "out" / "base.nats.jsonl"
    rows = twice.read_text().splitlines(keepends=True)
    twice.write_text("".join([*rows[:4], *rows[2:]]))
    left = rlmon("probe", "models", BASE_DIR, trained, *how)
    assert "base.nats.jsonl is damaged" in left.err
    twice.write_text("".join(rows))
    note = tmp_path / "out" / "probe.json"
    note.write_text(note.read_text().replace('"device": "', '"device": "another '))
    assert rlmon("probe", "models", BASE_DIR, trained, *how, "--fail-on", "never").code == 0, "nothing is to be drawn"
    twice.write_text("")
    assert "was begun on another " in rlmon("probe", "models", BASE_DIR, trained, *how).err
    twice.write_text("".join(rows))
    damaged = tmp_path / "out" / "base.nats.jsonl"
    damaged.write_text(damaged.read_text().replace("{", "<", 1))
    left = rlmon("probe", "models", BASE_DIR, trained, *how)
    assert (left.code, left.err.count("\n")) == (2, 1)
    assert "base.nats.jsonl is damaged: remove its folder, and all is sampled anew" in left.err


def test_what_cannot_be_probed_is_one_line_and_exit_2(
    rlmon: Rlmon, trained: Path, prompts: Path, tmp_path: Path
) -> None:
    def refused(base: Path, checkpoint: Path, *how: object) -> str:
        left = rlmon("probe", "models", base, checkpoint, *how)
        assert (left.code, left.out, left.err.count("\n")) == (2, "", 1)
        assert not (tmp_path / "rlmon-probe").exists()
        return left.err

    asked = ("--prompts", prompts, *SHORT)
    assert "there is no" in refused(tmp_path / "nowhere", trained, *asked)
    pickled = tiny_pairs.moved(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "The weights of CHECKPOINT are pickled (pytorch_model.bin)" in refused(BASE_DIR, pickled, *asked)
    tokens = tiny_pairs.moved(tmp_path / "tokens")
    told = json.loads((tokens / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tokens / "tokenizer.json").write_text(json.dumps(told))
    assert "BASE and CHECKPOINT have different tokenizers" in refused(BASE_DIR, tokens, *asked)
    (tmp_path / "empty").write_text("\n")
    assert "has no prompts: one a line is needed" in refused(BASE_DIR, trained, "--prompts", tmp_path / "empty")
    for prompt, why in {
        "": "prompt 2 is empty",
        "1 + " * 200: "tokens, and the models read 128 with the completion, for which --max-new-tokens wants 8",
        "1 \ud800": "prompt 2 is no text that the tokenizer can read (1 \\ud800)",
    }.items():
        (tmp_path / "odd.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in ("1 + 1 = ", prompt)))
        assert why in refused(BASE_DIR, trained, "--prompts", tmp_path / "odd.jsonl", *SHORT)
    no_such = refused(BASE_DIR, trained, *asked, "--reward", "nowhere.at_all:right")
    assert "There is no reward function 'nowhere.at_all:right'" in no_such


def test_a_reward_that_raises_is_named_and_costs_no_samples(
    rlmon: Rlmon, trained: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "rewards_of_a_test.py").write_text("def raises(**columns):\n    raise KeyError('missing')\n")
    how = ["--prompts", prompts, "--samples", 2, "--max-new-tokens", 1, "--out", tmp_path / "out"]
    left = rlmon("probe", "models", BASE_DIR, trained, *how, "--reward", "rewards_of_a_test:raises")
    assert (left.code, left.out) == (2, "")
    assert left.err.splitlines()[-1] == "rlmon: raises raised KeyError: 'missing'"
    assert len((tmp_path / "out" / "checkpoint.nats.jsonl").read_text().splitlines()) == 12


def test_a_prompt_that_comes_again_is_asked_once(rlmon: Rlmon, trained: Path, prompts: Path) -> None:
    prompts.write_text(prompts.read_text() * 8)
    how = ["--prompts", prompts, "--samples", 2, "--max-new-tokens", 1, "--format", "json", "--fail-on", "never"]
    left = rlmon("probe", "models", BASE_DIR, trained, *how)
    assert json.loads(left.out)["prompts"] == 6
    assert "42 of 48 rows ask what one before them asks" in left.err


def test_weights_that_are_no_numbers_are_named(rlmon: Rlmon, prompts: Path, tmp_path: Path) -> None:
    burst = tiny_pairs.moved(tmp_path / "burst", by=math.nan)
    left = rlmon("probe", "models", BASE_DIR, burst, "--prompts", prompts, *SHORT)
    assert (left.code, left.out) == (2, "")
    assert left.err.splitlines()[-1].startswith("rlmon: CHECKPOINT cannot be sampled: ")
