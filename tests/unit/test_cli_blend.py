"""`rlmon blend` on the command line: what it writes, prints and refuses, and with which exit code it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_weights as made
import pytest
import torch
from called import Rlmon
from safetensors.torch import load_file

from rlmon.blending import telling
from rlmon.blending.curve import SHOWN, Curve, Point, curve
from rlmon.blending.making import open_pair
from rlmon.errors import ConfigError, WeightsError
from rlmon.lab.bases import BASE_DIR, WEIGHTS
from rlmon.lab.prompts import Prompts, read_prompts
from rlmon.lab.rewards import reward_function
from rlmon.lab.task import split_questions

BASE, TRAINED = {"w": torch.zeros(4)}, {"w": torch.ones(4)}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    return made.model(tmp_path / "base", BASE), made.model(tmp_path / "rl", TRAINED), tmp_path / "out"


def test_a_blend_is_written_and_said(rlmon: Rlmon, folders: tuple[Path, Path, Path]) -> None:
    base, trained, out = folders
    left = rlmon("blend", base, trained, "--alpha", ".25", "--out", out)
    assert (left.code, left.out) == (0, "")
    assert left.err == f"rlmon: {out} is the model at A = 0.25: 1 tensors, 0.0 MB, with blend.json.\n"
    assert made.weights(out)["w"].tolist() == [0.25] * 4
    beyond = rlmon("blend", base, trained, "--alpha", "-1", "--out", out)
    assert beyond.err.startswith("rlmon: A = -1 is on the other side of the base (extrapolation)")
    assert made.weights(out)["w"].tolist() == [-1.0] * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "writes a model with --alpha A and --out DIR, or prints a curve with --prompts FILE"),
        (["--alpha", ".2"], "writes a model with --alpha A and --out DIR"),
        (["--out", "x", "--prompts", "p"], "--alpha and --out go together"),
        (["--alpha", "nan", "--out", "x"], "alpha has to be a number"),
        (
            ["--alpha", ".2", "--out", "x", "--reward", "a:b"],
            "--reward scores completions of prompts: add --prompts FILE",
        ),
        (["--prompts", "nowhere.txt", "--alpha", ".2", "--out", "x"], "cannot read the prompts nowhere.txt"),
        (
            ["--prompts", __file__, "--alpha", ".2", "--out", "x", "--alphas", "0,x"],
            "--alphas has to be numbers separated by commas",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    rlmon: Rlmon, folders: tuple[Path, Path, Path], arguments: list[str], said: str
) -> None:
    left = rlmon("blend", *folders[:2], *arguments)
    assert (left.code, left.out) == (2, "")
    assert said in left.err
    assert sorted(path.name for path in folders[0].parent.iterdir()) == ["base", "rl"]


def test_a_reward_function_that_is_not_there_is_said_before_a_model_is_written(
    rlmon: Rlmon, folders: tuple[Path, Path, Path]
) -> None:
    base, trained, out = folders
    how = ["--prompts", __file__, "--reward", "nowhere.at_all:right", "--alpha", ".2", "--out", out]
    left = rlmon("blend", base, trained, *how)
    assert (left.code, out.exists()) == (2, False)
    assert "There is no reward function 'nowhere.at_all:right'" in left.err


def test_folders_that_cannot_be_blended_are_one_line_and_exit_2(rlmon: Rlmon, folders: tuple[Path, Path, Path]) -> None:
    base, trained, out = folders
    (trained / "model.safetensors").rename(trained / "pytorch_model.bin")
    left = rlmon("blend", base, trained, "--alpha", ".25", "--out", out)
    assert (left.code, left.out, left.err.count("\n")) == (2, "", 1)
    assert left.err.startswith("rlmon: The weights of CHECKPOINT are pickled (pytorch_model.bin), which is a program")


# -- the curve -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the demo with its weights moved, in float32."""
    folder = tmp_path_factory.mktemp("curve") / "rl"
    noise = torch.Generator().manual_seed(4)
    tensors = {name: tensor.float() for name, tensor in load_file(BASE_DIR / WEIGHTS).items()}
    moved = {name: tensor + 0.02 * torch.randn(tensor.shape, generator=noise) for name, tensor in tensors.items()}
    made.model(folder, moved)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        (folder / name).write_bytes((BASE_DIR / name).read_bytes())
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": question.prompt, "answer": question.answer} for question in split_questions()[1][:6]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_curve(rlmon: Rlmon, trained: Path, prompts: Path) -> None:
    how = ["--prompts", prompts, "--reward", "rlmon.lab.task:reward_correct", "--alphas", ".5", "--max-new-tokens", 12]
    left = rlmon("blend", BASE_DIR, trained, *how, "--samples", 4, "--format", "json")
    assert left.code == 0, left.err
    found = json.loads(left.out)
    assert [point["alpha"] for point in found["points"]] == [0.0, 0.5, 1.0]
    assert [point["completions"] for point in found["points"]] == [24] * 3
    for point in found["points"]:
        assert tuple(point["metrics"]) == SHOWN
        assert point["metrics"]["rlmon/format/effective"] >= 1
        assert point["metrics"]["rlmon/entropy/mean"] > 0
        assert point["accuracy"] == point["reward"]
    assert found["success"] == "reward_correct above 0.5"
    assert found["points"][0]["formats_kept"] == 1.0
    assert "A = 0.5: 24 completions sampled (2 of 3)" in left.err


def test_what_is_measured_is_of_the_models_that_would_be_written(trained: Path, prompts: Path, tmp_path: Path) -> None:
    """The base's point and the checkpoint's, by another way: models that transformers loads, `rlmon.lab.evaluate`'s
    formats, and entropies of its own formula."""
    from collections import Counter

    from transformers import AutoModelForCausalLM, AutoTokenizer

    import rlmon
    from rlmon.lab.evaluate import effective_number
    from rlmon.lab.sampling import draws, entropy_and_kl
    from rlmon.lab.task import is_correct, reward_correct
    from rlmon.metrics.formats import ModeSet

    asked = read_prompts(prompts)
    found = curve(
        open_pair(BASE_DIR, trained),
        asked,
        reward_correct,
        alphas=[0.3],
        samples=4,
        max_new_tokens=12,
        at_once=8,
        seed=9,
    )
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    rlmon.blend(BASE_DIR, trained, 0.3, tmp_path / "out")
    for point, folder in zip(found.points, (BASE_DIR, tmp_path / "out", trained), strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        drawn = list(draws(model, tokenizer, asked.prompts, max_new_tokens=12, sequences_per_batch=8, seed=9, copies=4))
        texts = [text for batch in drawn for text in batch.texts]
        modes = [ModeSet.build(None).parse(text) for text in texts]
        answers = [answer for answer in asked.columns["answer"] for _ in range(4)]
        right = list(map(is_correct, texts, answers))
        nats = sum(float(entropy_and_kl(model, model, batch)[0].sum()) for batch in drawn)
        tokens = sum(int(batch.own_BT.sum()) for batch in drawn)
        assert point.metrics["rlmon/format/effective"] == pytest.approx(effective_number(modes))
        assert point.metrics["rlmon/format/top_share"] == max(Counter(modes).values()) / 24
        assert point.metrics["rlmon/entropy/mean"] == pytest.approx(nats / tokens, rel=1e-4)
        assert point.accuracy == sum(right) / 24


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_curve_of_an_adapter_by_answers_from_text(rlmon: Rlmon, tmp_path: Path, prompts: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    model.save_pretrained(tmp_path / "rl")
    out = tmp_path / "out"
    how = ["--prompts", prompts, "--alphas", "0", "--samples", 2, "--max-new-tokens", 12, "--alpha", ".5", "--out", out]
    left = rlmon("blend", BASE_DIR, tmp_path / "rl", *how)
    assert left.code == 0, left.err
    assert "A success: the final answer is that of the column answer." in left.out
    zero, one = (line.split() for line in left.out.splitlines()[1:3])
    assert (zero[0], one[0], zero[-2]) == ("0", "1", "100%")
    assert zero[1:6] != one[1:6]
    assert "Tensors that were trained whole (modules_to_save, biases) are blended with BASE's" in left.err
    assert (out / "adapter_config.json").exists()


def test_prompts_as_text_and_as_conversations(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("What is 1 + 1?\r\n\n  two\n", encoding="utf-8")
    assert read_prompts(file).prompts == ["What is 1 + 1?", "  two"]
    asked = [{"role": "user", "content": "hi"}]
    rows = '{"prompt": [{"role": "user", "content": "hi"}], "n": 1}\n{"prompt": "x", "k": null}\n'
    for text in (rows, "\ufeff" + rows, f"[{rows.strip().replace(chr(10), ', ' + chr(10))}]"):
        file.write_text(text, encoding="utf-8")
        found = read_prompts(file)
        assert (found.prompts, found.columns) == ([asked, "x"], {"n": [1, None], "k": [None, None]})
    file.write_text("[INST] hi\n", encoding="utf-8")
    assert read_prompts(file).prompts == ["[INST] hi"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n \n", "has no prompts: one a line is needed"),
        ('{"prompt": "x"}\nhello\n', 'row 2 is no JSON object with a "prompt" that is text or .*: hello'),
        ('{"question": "x"}', "row 1 is no JSON object"),
        ('{"prompt": [1]}', "row 1 is no JSON object with a .prompt. that is text or a list of messages"),
        (b"\xff\xfe", "cannot read the prompts"),
    ],
)
def test_prompts_that_are_none(tmp_path: Path, text: str | bytes, said: str) -> None:
    file = tmp_path / "p"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=said):
        read_prompts(file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("right", "There is no reward function 'right'"),
        ("nowhere.at_all:right", "There is no reward function 'nowhere.at_all:right'"),
        ("rlmon.lab.task:wrong", "There is no reward function 'rlmon.lab.task:wrong'"),
    ],
)
def test_a_reward_function_that_is_none(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reward_function(name)


@contextlib.contextmanager
def lacking(package: str) -> Iterator[None]:
    """As if it were not installed."""
    import importlib.util as util

    really = util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlmon.lab.loading.find_spec", lambda name: None if name == package else really(name))
        yield


def test_what_the_curve_needs_and_what_a_reward_function_may_do(trained: Path, prompts: Path) -> None:
    pair, asked = open_pair(BASE_DIR, trained), read_prompts(prompts)
    how: dict[str, Any] = {"alphas": [], "samples": 1, "max_new_tokens": 1}
    with (
        lacking("transformers"),
        pytest.raises(ImportError, match=r"needs transformers, .* pip install 'rlmon\[trl\]'"),
    ):
        curve(pair, asked, **how)

    def raises(**columns: Any) -> list[float]:
        raise KeyError("missing")

    async def graded(completions: list[str], answer: list[int], **columns: Any) -> list[float | None]:
        assert len(completions) == len(answer) == len(columns["completion_ids"])
        return [None, float("nan"), *(0.1 * at for at in range(len(completions) - 2))]

    with pytest.raises(ConfigError, match="raises raised KeyError: 'missing'"):
        curve(pair, asked, raises, **how)
    with pytest.raises(ConfigError, match=r"gave 1 rewards for 6 completions: one for each is needed\."):
        curve(pair, asked, lambda **columns: [1.0], **how)
    found = curve(pair, asked, graded, **how)
    # (0 + .1 + .2 + .3) / 4; graded rewards have no plain top
    assert [(point.accuracy, point.reward) for point in found.points] == [(None, pytest.approx(0.15))] * 2
    assert found.success is None
    assert "These rewards are graded" in telling.sentences(found)[1]


def test_columns_may_be_called_as_what_a_reward_function_is_given(trained: Path) -> None:
    columns = {name: ["other"] * 2 for name in ("reward", "prompts", "completions", "completion_ids")}

    def right(prompts: list[str], completions: list[str], reward: list[str], **columns: Any) -> list[float]:
        assert (prompts, reward) == (["1 + 1 = "] * 2, ["other"] * 2)
        assert "other" not in completions
        return [1.0] * 2

    asked = Prompts(["1 + 1 = "] * 2, columns)
    assert (
        curve(open_pair(BASE_DIR, trained), asked, right, alphas=[], samples=1, max_new_tokens=1).points[0].reward == 1
    )


def test_how_a_checkpoint_is_used_by_default_is_not_how_it_is_sampled(
    trained: Path, tmp_path: Path, prompts: Path
) -> None:
    """Qwen's penalty on repetition, the cache of Gemma, gradient checkpointing's ``use_cache``: none of them is
    temperature 1. Several end tokens, as of Gemma and Llama, end a completion each."""

    def entropy(**told: Any) -> Curve:
        usual = tmp_path / f"usual{len(list(tmp_path.iterdir()))}"
        shutil.copytree(trained, usual)
        (usual / "generation_config.json").write_text(json.dumps(told))
        return curve(open_pair(BASE_DIR, usual), read_prompts(prompts), alphas=[], samples=2, max_new_tokens=12, seed=1)

    plain = entropy(eos_token_id=1)
    odd = {"repetition_penalty": 50.0, "cache_implementation": "static", "use_cache": False, "num_beams": 3}
    assert entropy(eos_token_id=1, **odd).points == plain.points
    ended = entropy(eos_token_id=[1, *range(3, 400)])
    assert ended.points[0].metrics != plain.points[0].metrics


def test_a_prompt_of_one_token_and_accuracy_that_nothing_tells(rlmon: Rlmon, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("1\n")
    how = ["--prompts", tmp_path / "p.txt", "--alphas", "0", "--samples", 2, "--max-new-tokens", 2]
    left = rlmon("blend", BASE_DIR, trained, *how)
    assert left.code == 0, left.err
    assert "Nothing says which completions are right: add --reward, or a column answer to the prompts." in left.out


def test_a_model_whose_weights_have_other_names_once_loaded(trained: Path, prompts: Path, tmp_path: Path) -> None:
    def renamed(folder: Path, target: Path) -> Path:
        tensors = {name.replace("q_proj", "query"): tensor for name, tensor in made.weights(folder).items()}
        made.model(target, tensors)
        for file in folder.glob("*.json"):
            (target / file.name).write_bytes(file.read_bytes())
        return target

    pair = open_pair(renamed(BASE_DIR, tmp_path / "a"), renamed(trained, tmp_path / "b"))
    with pytest.raises(WeightsError, match=r"other names when it loads them \(model.layers.0.self_attn.query.weight"):
        curve(pair, read_prompts(prompts), alphas=[], samples=1, max_new_tokens=1)


def point(alpha: float, score: float, formats: float | None, accuracy: bool = True) -> Point:
    metrics = dict.fromkeys(SHOWN, 1.5) | {"rlmon/format/effective": formats}
    missing = {} if formats is not None else {"rlmon/format/effective": "nothing was in use"}
    return Point(alpha, 8, score if accuracy else None, score, metrics, missing)


def drawn(*points: Point) -> Curve:
    return Curve(points, 2, 4, 16, 0, "reward above 0.5")


def test_which_a_keeps_what() -> None:
    found = drawn(
        point(0, 0.5, 4.0), point(0.2, 0.6, 4.4), point(0.4, 0.7, 3.5), point(0.6, 0.8, 3.0), point(1, 0.9, 1.0)
    )
    # 3.5 / 4 = 88 % is above 85 %, 3 / 4 is not; (.7 - .5) / (.9 - .5)
    assert telling.sentences(found)[2:] == [
        "A = 0.4 is the largest that keeps 85% of the base's formats in use (3.50; 4.00 at the base, 1.00 at the "
        "checkpoint), with 50% of what the checkpoint gained in accuracy.",
        "The checkpoint keeps 100% of the base's templates within a prompt (1.50; 1.50 at the base): there is little "
        "to bring back.",
    ]
    titles, *rows = telling.rows(found)
    assert (titles[0], titles[1], len(titles)) == ("A", "accuracy", len(rows[0]))
    assert rows[1] == ["0.2", "0.600", "4.40", "1.50", "1.50", "1.500", "110%", "25%"]
    assert list(telling.markdown(found))[2] == "| 0 | 0.500 | 4.00 | 1.50 | 1.50 | 1.500 | 100% | 0% |"
    assert json.loads(telling.as_json(found))["says"] == telling.sentences(found)


def test_where_there_is_little_to_say() -> None:
    none = drawn(point(0, 0.5, 4.0), point(0.5, 0.4, 2.0), point(1, 0.4, 1.0))
    assert telling.sentences(none)[2] == (
        "No A between 0 and 1 that was sampled keeps 85% of the base's formats in use (4.00 at the base)."
    )
    assert telling.rows(none)[2][-1] == "-", "nothing was gained"
    kept = drawn(point(0, 0.5, 4.0), point(1, 0.9, 3.8))
    assert telling.sentences(kept)[2].startswith("The checkpoint keeps 95% of the base's formats in use (3.80; 4.00")
    unknown = drawn(point(0, 0.5, None), point(1, 0.9, 3.8, accuracy=False))
    assert [line[:14] for line in telling.sentences(unknown)[2:]] == ["The checkpoint", "No formats in "]
    assert telling.sentences(unknown)[-1] == "No formats in use at A = 0: nothing was in use."
    graded = drawn(point(0, 0.5, 4.0, False), point(0.5, 0.7, 4.0, False), point(1, 0.9, 1.0, False))
    assert telling.rows(graded)[0][1] == "mean reward"
    assert telling.sentences(graded)[2].endswith("with 50% of what the checkpoint gained in reward.")


def test_the_help_says_what_runs_code(rlmon: Rlmon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    said = " ".join(rlmon("blend", "--help").out.split())
    assert "its module is imported, which runs its code" in said
    assert "base + A (checkpoint - base)" in said
