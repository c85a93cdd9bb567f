"""Blends of full models: arithmetic, what goes with what, what is refused, what is written beside the weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import made_weights as made
import pytest
import torch

import rlmon
from rlmon.blending.tensors import decoded, encoded
from rlmon.errors import ConfigError, WeightsError

BASE = {"a.weight": torch.tensor([[0.0, 1.0], [2.0, -4.0]]), "b.bias": torch.tensor([8.0, 8.0, 0.5])}
TRAINED = {"a.weight": torch.tensor([[1.0, 1.0], [-2.0, 4.0]]), "b.bias": torch.tensor([4.0, 8.0, 0.5])}


def pair(tmp_path: Path, base: made.Tensors, trained: made.Tensors, **how: Any) -> tuple[Path, Path, Path]:
    return made.model(tmp_path / "base", base), made.model(tmp_path / "rl", trained, **how), tmp_path / "out"


def test_a_quarter_of_the_way(tmp_path: Path) -> None:
    base, trained, out = pair(tmp_path, BASE, TRAINED)
    done = rlmon.blend(base, trained, 0.25, out)
    found = made.weights(out)
    # 0 + .25 (1 - 0); 1 + 0; 2 + .25 (-2 - 2); -4 + .25 (4 + 4)
    assert found["a.weight"].tolist() == [[0.25, 1.0], [1.0, -2.0]]
    # 8 + .25 (4 - 8); equal ones stay
    assert found["b.bias"].tolist() == [7.0, 8.0, 0.5]
    assert (done.kind, done.tensors, done.bytes, done.notes) == ("model", 2, 28, ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_base", [torch.bfloat16, torch.float32])
def test_it_is_what_torch_computes(tmp_path: Path, dtype: torch.dtype, of_base: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(3)
    base = {"w": torch.randn(37, 11, generator=noise).to(of_base)}
    trained = {"w": (base["w"].double() + 0.1 * torch.randn(37, 11, generator=noise).double()).to(dtype)}
    rlmon.blend(*pair(tmp_path, base, trained)[:2], 0.3, tmp_path / "out")
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    b, c = base["w"].to(wide), trained["w"].to(wide)
    found = made.weights(tmp_path / "out")["w"]
    assert found.dtype is dtype
    assert torch.equal(found, (b + torch.tensor(0.3, dtype=wide) * (c - b)).to(dtype))


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    values = torch.cat([torch.randn(5_000) * 10.0**power for power in range(-38, 38, 4)])
    # Half-way between two of them, up and down; the largest; a NaN with its mark in the lower half of its bits.
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x7F7F0000, 0x7F7FFFFF, 0x7F800001, 0x00000001], dtype=torch.int32)
    values = torch.cat([values, bits.view(torch.float32), torch.tensor([float("inf"), -0.0])])
    ours = torch.frombuffer(bytearray(encoded(values.numpy(), "BF16")), dtype=torch.bfloat16)
    assert torch.equal(ours.nan_to_num(7.0), values.to(torch.bfloat16).nan_to_num(7.0))
    assert torch.equal(torch.from_numpy(decoded(encoded(values.numpy(), "BF16"), "BF16").copy()).nan_to_num(7.0),
                       values.to(torch.bfloat16).float().nan_to_num(7.0))  # fmt: skip


def test_one_is_the_checkpoint_and_nought_the_base_bit_for_bit(tmp_path: Path) -> None:
    base = {"w": torch.randn(50).bfloat16(), "x": torch.tensor([float("nan"), -0.0])}
    trained = {"w": torch.randn(50).bfloat16(), "x": torch.tensor([float("inf"), 1e-40])}
    below, above, out = pair(tmp_path, base, trained, shards=[["x"], ["w"]])
    rlmon.blend(below, above, 1, out)
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json",
                 "model.safetensors.index.json"):  # fmt: skip
        assert (out / name).read_bytes() == (above / name).read_bytes()
    rlmon.blend(below, above, 0, out)
    found = made.weights(out)
    for name, tensor in base.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def test_shards_of_one_go_with_shards_of_the_other(tmp_path: Path) -> None:
    tensors = {f"layers.{at}.weight": torch.full((3, 2), float(at)) for at in range(4)}
    doubled = {name: 3 * tensor for name, tensor in tensors.items()}
    names = list(tensors)
    base = made.model(tmp_path / "base", tensors, shards=[names[:3], names[3:]])
    trained = made.model(tmp_path / "rl", doubled, shards=[names[2:], [names[1]], [names[0]]])
    rlmon.blend(base, trained, 0.5, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == [
        f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3)
    ]
    found = made.weights(tmp_path / "out")
    # at + .5 (3 at - at) = 2 at
    assert {name: tensor.unique().tolist() for name, tensor in found.items()} == {
        name: [2.0 * at] for at, name in enumerate(names)
    }


def test_a_tensor_longer_than_a_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlmon.blending.writing.VALUES_AT_ONCE", 7)
    base, trained = {"w": torch.arange(30.0)}, {"w": torch.arange(30.0) + 2}
    rlmon.blend(*pair(tmp_path, base, trained)[:2], 0.5, tmp_path / "out")
    assert made.weights(tmp_path / "out")["w"].tolist() == [at + 1.0 for at in range(30)]


def test_what_is_no_float_is_copied_and_said_to_differ(tmp_path: Path) -> None:
    base = {**BASE, "ids": torch.tensor([1, 2]), "mask": torch.tensor([True])}
    trained = {**TRAINED, "ids": torch.tensor([1, 3]), "mask": torch.tensor([True])}
    below, above, out = pair(tmp_path, base, trained)
    done = rlmon.blend(below, above, 0.5, out)
    assert made.weights(out)["ids"].tolist() == [1, 3]
    assert done.notes == ("Tensors that are no floats were copied from CHECKPOINT, and differ from BASE's: ids.",)


EMBEDDING = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("head", ["lm_head.weight", "model.lm_head.weight"])
def test_a_head_that_only_the_checkpoint_has_is_blended_with_the_bases_embedding(tmp_path: Path, head: str) -> None:
    base = {"model.embed_tokens.weight": EMBEDDING}
    trained = {"model.embed_tokens.weight": EMBEDDING + 2, head: EMBEDDING + 4}
    done = rlmon.blend(*pair(tmp_path, base, trained)[:2], 0.5, tmp_path / "out")
    found = made.weights(tmp_path / "out")
    assert torch.equal(found["model.embed_tokens.weight"], EMBEDDING + 1)
    assert torch.equal(found[head], EMBEDDING + 2)
    assert done.notes == (
        f"BASE has no {head}, since its head is its embedding: model.embed_tokens.weight stands for it.",
    )


def test_a_head_that_only_the_base_has_counts_where_it_is_no_copy_of_its_embedding(tmp_path: Path) -> None:
    trained = {"model.embed_tokens.weight": EMBEDDING + 2}
    copy = {"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": EMBEDDING.clone()}
    base, above, out = pair(tmp_path, copy, trained)
    rlmon.blend(base, above, 0.5, out)
    assert list(made.weights(out)) == ["model.embed_tokens.weight"]
    own = made.model(tmp_path / "own", {**copy, "lm_head.weight": EMBEDDING * 2})
    with pytest.raises(WeightsError, match=r"the same tensors \(in BASE only: lm_head.weight\)\. Give as BASE"):
        rlmon.blend(own, above, 0.5, tmp_path / "other")


@pytest.mark.parametrize("at_base", [True, False])
def test_names_that_begin_with_a_word_more_and_constants_that_one_side_stores(tmp_path: Path, at_base: bool) -> None:
    plain = {"wte.weight": EMBEDDING, "h.0.attn.c_attn.weight": torch.ones(3), "ln_f.weight": torch.ones(2)}
    longer = {f"transformer.{name}": tensor + 2 for name, tensor in plain.items()}
    mask = "h.0.attn.bias"
    if at_base:
        base, trained = {**plain, mask: torch.ones(1, 1, 2, 2)}, longer
    else:
        base, trained = longer, {**plain, mask: torch.ones(1, 1, 2, 2)}
    done = rlmon.blend(*pair(tmp_path, base, trained)[:2], 0.5, tmp_path / "out")
    found = made.weights(tmp_path / "out")
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], plain[name.removeprefix("transformer.")] + 1) for name in found if name != mask)
    shown = f"transformer.{mask}" if at_base else mask
    assert done.notes == (f"Constants that only one of the two stores are as CHECKPOINT has them: {shown}.",)
    learned = {**trained, "h.0.attn.bias": torch.ones(3)}
    made.model(tmp_path / "learned", learned)
    with pytest.raises(WeightsError, match=r"in CHECKPOINT only: h.0.attn.bias"):
        rlmon.blend(
            made.model(tmp_path / "b", {n: t for n, t in base.items() if n != mask}), tmp_path / "learned", 0.5, "x"
        )


def test_added_tokens_keep_the_checkpoints_rows(tmp_path: Path) -> None:
    base = {"model.embed_tokens.weight": EMBEDDING}
    trained = {"model.embed_tokens.weight": torch.cat([EMBEDDING + 2, torch.tensor([[9.0, 9.0]])])}
    below, above, out = pair(tmp_path, base, trained)
    done = rlmon.blend(below, above, 0.5, out)
    assert made.weights(out)["model.embed_tokens.weight"].tolist() == [[2.0, 3.0], [4.0, 5.0], [9.0, 9.0]]
    assert done.notes == (
        "Rows that only CHECKPOINT has (added tokens) are its own at every A: model.embed_tokens.weight has 3 of them, "
        "and 2 in BASE.",
    )
    for folder, numbers in ((below, {"a": 0, "b": 1}), (above, {"a": 0, "b": 1, "<new>": 2})):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": numbers}}))
    rlmon.blend(below, above, 0.5, out)
    (above / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": [["b", -1.0], ["c", -2.0]]}, "added_tokens": [{"id": 2, "content": "a"}]})
    )
    with pytest.raises(WeightsError, match="these are not added tokens: 'a' is token 0 in BASE and 2 in CHECKPOINT"):
        rlmon.blend(below, above, 0.5, tmp_path / "other")
    with pytest.raises(WeightsError, match=r"\(of other shapes or kinds: model.embed_tokens.weight F32 \[3, 2\] in"):
        rlmon.blend(above, below, 0.5, tmp_path / "other")


@pytest.mark.parametrize(
    ("base", "trained", "said"),
    [
        (BASE, {**TRAINED, "new": torch.ones(1)}, r"\(in CHECKPOINT only: new\)"),
        ({**BASE, "old": torch.ones(1)}, TRAINED, r"\(in BASE only: old\)"),
        (BASE, {**TRAINED, "b.bias": torch.ones(4)}, r"b.bias F32 \[3\] in BASE, F32 \[4\] in CHECKPOINT\)"),
        ({"h.output.weight": torch.ones(2, 2)}, {"h.output.weight": torch.ones(3, 2)}, "h.output.weight F32"),
        (BASE, {**TRAINED, "b.bias": torch.ones(3, dtype=torch.int64)}, r"F32 \[3\] in BASE, I64 \[3\] in CHECKPOINT"),
        ({f"a{at}": torch.ones(1) for at in range(9)}, BASE, "a0, a1, a2, a3 and 5 more"),
        ({"\x1b[2J": torch.ones(1)}, BASE, r"\\x1b\[2J"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(
    tmp_path: Path, base: made.Tensors, trained: made.Tensors, said: str
) -> None:
    with pytest.raises(WeightsError, match=said):
        rlmon.blend(*pair(tmp_path, base, trained)[:2], 0.5, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "rl"]


def test_what_lies_beyond_is_said_and_what_no_longer_fits_is_refused(tmp_path: Path) -> None:
    base, trained = {"w": torch.tensor([0.0, 60_000.0]).half()}, {"w": torch.tensor([1.0, 64_992.0]).half()}
    below, above, out = pair(tmp_path, base, trained)
    done = rlmon.blend(below, above, -1, out)
    assert made.weights(out)["w"].tolist() == [-1.0, 55_008.0]  # 60000 - 4992
    assert done.notes == ("A = -1 is on the other side of the base (extrapolation): nothing there was trained.",)
    with pytest.raises(WeightsError, match=r"w F16 \[2\] has values at A = 2 that are too large for F16"):
        rlmon.blend(below, above, 2, tmp_path / "other")


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    inf, nan = float("inf"), float("nan")
    base = {"mask": torch.tensor([-inf, 0.0]), "w": torch.tensor([1.0])}
    trained = {"mask": torch.tensor([-inf, 2.0]), "w": torch.tensor([nan])}
    below, above, out = pair(tmp_path, base, trained)
    with pytest.raises(WeightsError, match=r"w F32 \[1\] has values in CHECKPOINT that are no finite numbers"):
        rlmon.blend(below, above, 0.5, out)
    fine = made.model(tmp_path / "fine", {**trained, "w": torch.tensor([3.0])})
    rlmon.blend(below, fine, 0.5, out)
    assert made.weights(out)["mask"].tolist() == [-inf, 1.0]


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), True, "0.3", None])
def test_alpha_has_to_be_a_number(tmp_path: Path, alpha: Any) -> None:
    with pytest.raises(ConfigError, match="alpha has to be a number, 0 for the base and 1 for the checkpoint, got"):
        rlmon.blend(*pair(tmp_path, BASE, TRAINED)[:2], alpha, tmp_path / "out")


def test_what_is_written_beside_the_weights(tmp_path: Path) -> None:
    base, trained, out = pair(tmp_path, BASE, TRAINED, config={"_name_or_path": "x"})
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (trained / name).write_text(f"the checkpoint's {name}")
    for name in ("README.md", "optimizer.pt", "training_args.bin", "trainer_state.json", "modeling_x.py"):
        (trained / name).write_text("not of a blend")
    (base / "tokenizer.json").write_text("the base's")
    rlmon.blend(base, trained, 0.25, out)
    found = made.files(out)
    assert list(found) == [
        "blend.json", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json",
    ]  # fmt: skip
    assert found["tokenizer.json"] == b"the checkpoint's tokenizer.json"
    note = json.loads(found.pop("blend.json"))
    assert (note["tool"], note["alpha"], note["kind"]) == ("rlmon blend", 0.25, "model")
    assert {"python", "rlmon", "numpy"} < note["packages"].keys()
    assert note["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    for role, folder in (("base", base), ("checkpoint", trained)):
        data = (folder / "model.safetensors").read_bytes()
        assert note[role]["sha256"] == {"model.safetensors": hashlib.sha256(data).hexdigest()}
        assert note[role]["path"] == str(folder)
    assert (out.stat().st_mode & 0o777) == (trained.stat().st_mode & 0o777)


def test_the_bases_tokenizer_stands_in_for_none(tmp_path: Path) -> None:
    base, trained, out = pair(tmp_path, BASE, TRAINED)
    for name in ("tokenizer.json", "special_tokens_map.json", "generation_config.json"):
        (base / name).write_text("the base's")
    assert rlmon.blend(base, trained, 0.5, out).notes == ("CHECKPOINT has no tokenizer: BASE's was copied.",)
    assert {"tokenizer.json", "special_tokens_map.json"} < made.files(out).keys()
    assert "generation_config.json" not in made.files(out)


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    rlmon.blend(*pair(tmp_path, BASE, TRAINED)[:2], 0.5, tmp_path / "out", progress=lambda *at: seen.append(at))
    # 16 + 12 bytes written, and as many of the base for its hash
    assert seen == [(16, 56), (28, 56), (56, 56)]


def test_an_out_that_is_taken(tmp_path: Path) -> None:
    base, trained, out = pair(tmp_path, BASE, TRAINED)
    out.mkdir()
    rlmon.blend(base, trained, 0.5, out)  # an empty one is taken
    rlmon.blend(base, trained, 1.0, out)  # a blend is replaced
    assert torch.equal(made.weights(out)["a.weight"], TRAINED["a.weight"])
    trained_on = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(trained_on)  # save_pretrained to a blend leaves the names that it had
    os.utime(out / "model.safetensors", ns=(10**19 // 2, 10**19 // 2))
    with pytest.raises(
        ConfigError, match=r"out has model.safetensors that is no longer the blend's, which would be lost"
    ):
        rlmon.blend(base, trained, 0.5, out)
    shutil.rmtree(out)
    rlmon.blend(base, trained, 1.0, out)
    (out / "notes.txt").write_text("mine")
    before = made.files(out)
    with pytest.raises(ConfigError, match=r"out has notes.txt beside a blend, which would be lost"):
        rlmon.blend(base, trained, 0.5, out)
    assert made.files(out) == before
    for folder, said in (
        (base, "is BASE"),
        (trained, "is CHECKPOINT"),
        (tmp_path, "is BASE, or a folder that it lies in"),
    ):
        with pytest.raises(ConfigError, match=said):
            rlmon.blend(base, trained, 0.5, folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"new or empty, and .*full has thesis\.tex\. Type another --out\."):
        rlmon.blend(base, trained, 0.5, tmp_path / "full")
    with pytest.raises(ConfigError, match="is a file"):
        rlmon.blend(base, trained, 0.5, tmp_path / "full" / "thesis.tex")
    with pytest.raises(ConfigError, match="are one folder"):
        rlmon.blend(base, base, 0.5, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "full", "out", "rl"]


def test_a_folder_of_the_cache_of_the_hub_is_read_through_its_links(tmp_path: Path) -> None:
    base, trained, out = pair(tmp_path, BASE, TRAINED)
    blobs, snapshot = tmp_path / "models--o--base" / "blobs", tmp_path / "models--o--base" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in base.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    rlmon.blend(snapshot, trained, 0.25, out)
    assert made.weights(out)["b.bias"].tolist() == [7.0, 8.0, 0.5]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.rmdir(), "BASE has to be a folder with model.safetensors; there is no .*hf download NAME"),
        (lambda path: (path / "x").touch(), r"has no weights: model.safetensors or .* is needed; there is x\."),
        (lambda path: [(path / f"checkpoint-{n}").mkdir() for n in (9, 180)], 
         "Give a checkpoint in it: .*checkpoint-180"),
        (lambda path: (path / "pytorch_model.bin").touch(), "pickled .pytorch_model.bin.* write them anew: python -c"),
        (lambda path: (path / "adapter_config.json").write_text('{"base_model_name_or_path": "o/b"}'),
         r"is an adapter\. Give the folder of the model that the adapter was trained on \(o/b\)\."),
        (lambda path: (path / "config.json").write_text("[1]"), "is not the JSON that it should be: it is no mapping"),
    ],
)  # fmt: skip
def test_a_base_that_is_none(tmp_path: Path, make: Any, said: str) -> None:
    trained = made.model(tmp_path / "rl", TRAINED)
    (tmp_path / "base").mkdir()
    make(tmp_path / "base")
    with pytest.raises(WeightsError, match=said):
        rlmon.blend(tmp_path / "base", trained, 0.5, tmp_path / "out")


def test_a_base_by_its_name_on_the_hub_is_answered_with_what_brings_it_here(tmp_path: Path) -> None:
    trained = made.model(tmp_path / "rl", TRAINED)
    with pytest.raises(WeightsError, match=r"on this disk first: hf download Qwen/Qwen2\.5-0\.5B --local-dir FOLDER"):
        rlmon.blend("Qwen/Qwen2.5-0.5B", trained, 0.5, tmp_path / "out")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    base, trained, out = pair(tmp_path, BASE, TRAINED, config={"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(WeightsError, match=r"^The weights of CHECKPOINT .* are quantised"):
        rlmon.blend(base, trained, 0.5, out)
