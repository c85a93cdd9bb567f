"""What holds of any blend: its ends, that it is linear in A, that equal weights stay, and that files are read back as
they are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import made_weights as made
import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlmon import blend
from rlmon.blending.tensors import FLOATS, blended, read_shard
from rlmon.errors import WeightsError

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
values = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20)
alphas = st.floats(-2, 3, allow_nan=False)
dtypes = st.sampled_from(FLOATS)


def stored(numbers: list[float], dtype: str) -> bytes:
    return bytes(torch.tensor(numbers, dtype=torch.float64).to(TORCH[dtype]).view(torch.uint8).numpy().tobytes())


def loaded(data: bytes, dtype: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).double()


@given(base=values, dtype=dtypes, of_base=dtypes, moved=st.randoms(use_true_random=False))
def test_its_ends(base: list[float], dtype: str, of_base: str, moved: object) -> None:
    b = stored(base, of_base)
    c = stored([number + moved.gauss(0, 1) for number in base], dtype)  # type: ignore[attr-defined]
    assert blended(b, c, 1.0, of_base, dtype) == c
    nought = blended(b, c, 0.0, of_base, dtype)
    assert torch.equal(loaded(nought, dtype), loaded(b, of_base).to(TORCH[dtype]).double())


@given(base=values, alpha=alphas, dtype=dtypes)
def test_equal_weights_stay_as_they_are(base: list[float], alpha: float, dtype: str) -> None:
    data = stored(base, dtype)
    assert torch.equal(loaded(blended(data, data, alpha, dtype, dtype), dtype), loaded(data, dtype))


@given(pairs=st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=9), alpha=alphas)
def test_it_is_linear_and_the_same_from_either_end(pairs: list[tuple[float, float]], alpha: float) -> None:
    base, trained = (stored(list(side), "F64") for side in zip(*pairs, strict=True))
    found = loaded(blended(base, trained, alpha, "F64", "F64"), "F64")
    b, c = loaded(base, "F64"), loaded(trained, "F64")
    torch.testing.assert_close(found, (1 - alpha) * b + alpha * c, atol=1e-11, rtol=1e-12)
    back = loaded(blended(trained, base, 1 - alpha, "F64", "F64"), "F64")
    torch.testing.assert_close(found, back, atol=1e-11, rtol=1e-12)


@given(base=values, alpha=st.floats(0, 1), dtype=dtypes)
@example(base=[1.0], alpha=0.1, dtype="BF16")
def test_inside_it_lies_between(base: list[float], alpha: float, dtype: str) -> None:
    b, c = stored(base, dtype), stored([number * 0.5 + 1 for number in base], dtype)
    found, low, high = (loaded(blended(b, c, at, dtype, dtype), dtype) for at in (alpha, 0.0, 1.0))
    # Rounding of the difference may overstep an end by its last digit.
    slack = 2.0**-23 * 2_000
    assert bool((found >= torch.minimum(low, high) - slack).all() and (found <= torch.maximum(low, high) + slack).all())


@given(data=st.binary(max_size=200), head=st.integers(0, 300))
@example(data=b"{}", head=2)
@example(data=b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', head=61)
def test_any_bytes_are_tensors_or_refused(data: bytes, head: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.safetensors")
        file.write_bytes(head.to_bytes(8, "little") + data)
        try:
            shard = read_shard(file)
        except WeightsError:
            return
        assert sum(tensor.bytes for tensor in shard.tensors) + len(shard.head) == len(data) + 8


@settings(max_examples=15)
@given(
    shapes=st.dictionaries(st.text(min_size=1, max_size=5), st.lists(st.integers(0, 4), max_size=3), max_size=5),
    alpha=alphas,
    dtype=st.sampled_from(list(TORCH.values())),
)  # fmt: skip
def test_whole_files_by_an_independent_reader(shapes: dict[str, list[int]], alpha: float, dtype: torch.dtype) -> None:
    shapes = {name: shape for name, shape in shapes.items() if name != "__metadata__"} or {"a": [2]}
    noise = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=noise).to(dtype) for name, shape in shapes.items()}
    trained = {name: torch.randn(shape, generator=noise).to(dtype) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        below, above = made.model(Path(folder, "base"), base), made.model(Path(folder, "rl"), trained)
        blend(below, above, alpha, Path(folder, "out"))
        found = made.weights(Path(folder, "out"))
    assert found.keys() == base.keys()
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    at = torch.tensor(np.float32(alpha) if wide is torch.float32 else alpha, dtype=wide)
    for name, tensor in found.items():
        b, c = base[name].to(wide), trained[name].to(wide)
        expected = trained[name] if alpha == 1 else base[name] if alpha == 0 else (b + at * (c - b)).to(dtype)
        assert torch.equal(tensor, expected)
