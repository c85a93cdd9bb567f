"""What the critic shows: arithmetic by hand, sums over ranks, and the sketches against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlmon.metrics import catalog
from rlmon.metrics.families import CRITIC, WATCHING
from rlmon.metrics.families.value import PERCENTS, SIGNED_EDGES
from rlmon.metrics.family import CriticTokens
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.step import Families
from rlmon.metrics.tokens import HISTOGRAM_TOKENS

WIDTH = 10 ** (1 / 96) - 1
FAMILIES = Families((*WATCHING, CRITIC), ModeSet.build(None).names)
SUMS = FAMILIES.layout["value"]


def value_sums(
    values_BT: Any, returns_BT: Any, advantages_BT: Any, mask_BT: Any, loss: Any, clip_ratio: Any
) -> NDArray[np.float64]:
    """What the critic's family adds, as the part of the vector that ranks add."""
    own = np.zeros((), dtype=SUMS)
    CRITIC.add_values(
        own,
        CriticTokens(
            values_BT=values_BT, returns_BT=returns_BT, advantages_BT=advantages_BT, mask_BT=mask_BT, loss=loss,
            clip_ratio=clip_ratio,
        ),
    )  # fmt: skip
    return own.reshape(1).view(np.float64)


def finish(vector: NDArray[np.float64]) -> tuple[dict[str, float | None], dict[str, str]]:
    """What the vector comes to, of the critic's metrics."""
    whole = FAMILIES.zeros()
    whole["value"] = vector.view(SUMS)[0]
    metrics, missing = ({n: v for n, v in of.items() if "/value/" in n} for of in FAMILIES.finish(whole))
    return metrics, missing


def non_finite(vector: NDArray[np.float64]) -> float:
    return float(vector.view(SUMS)[0]["non_finite"])


def sums(
    values: Any, returns: Any, advantages: Any = None, mask: Any = None, loss: Any = 0.5, clip_ratio: Any = 0.25
) -> NDArray[np.float64]:
    """``value_sums`` of one row, or of several; by default every token counts and advantages are returns - values."""
    values_BT, returns_BT = np.atleast_2d(np.asarray(values)), np.atleast_2d(np.asarray(returns))
    advantages_BT = returns_BT - values_BT if advantages is None else np.atleast_2d(np.asarray(advantages))
    mask_BT = np.ones(values_BT.shape) if mask is None else np.atleast_2d(np.asarray(mask))
    return value_sums(values_BT, returns_BT, advantages_BT, mask_BT, loss, clip_ratio)


def measured(vector: NDArray[np.float64]) -> dict[str, float | None]:
    metrics, missing = finish(vector)
    assert set(missing) == {name for name, value in metrics.items() if value is None}
    assert all(missing.values())
    assert all(value is None or math.isfinite(value) for value in metrics.values())
    return {name.removeprefix("rlmon/value/"): value for name, value in metrics.items()}


def test_by_hand() -> None:
    # The last token is outside of the mask. R - V = 1, 0, 2: mean 1, variance (0 + 1 + 1) / 3 = 2/3.
    # R = 2, 2, 5: mean 3, variance (1 + 1 + 4) / 3 = 2. Explained: 1 - (2/3) / 2 = 2/3.
    found = measured(sums([1.0, 2.0, 3.0, 99.0], [2.0, 2.0, 5.0, -99.0], mask=[1, 1, 1, 0]))
    assert found["explained_variance"] == pytest.approx(2 / 3, abs=1e-12)
    assert found["mean"] == pytest.approx(2.0)
    assert found["return_mean"] == pytest.approx(3.0)
    assert found["loss"] == 0.5
    assert found["clip_ratio"] == 0.25
    # Sorted, R = 2, 2, 5 and R - V = 0, 1, 2: the 5 % quantiles are the first, the 95 % quantiles the last.
    assert found["return_p05"] == pytest.approx(2.0, rel=WIDTH)
    assert found["return_p95"] == pytest.approx(5.0, rel=WIDTH)
    assert found["advantage_p05"] == 0.0
    assert found["advantage_p50"] == pytest.approx(1.0, rel=WIDTH)
    assert found["advantage_p95"] == pytest.approx(2.0, rel=WIDTH)


def test_loss_and_clip_ratio_are_weighted_by_tokens_not_by_micro_batches() -> None:
    several = sums([1.0, 2.0, 3.0], [2.0, 2.0, 5.0], loss=0.5, clip_ratio=1.0)
    one = sums([1.0, 7.0], [2.0, 7.0], mask=[1, 0], loss=0.1, clip_ratio=0.0)
    # (3 x 0.5 + 1 x 0.1) / 4 = 0.4, where the mean of the two means is 0.3; 3 of 4 tokens are clipped.
    found = measured(several + one)
    assert found["loss"] == pytest.approx(0.4)
    assert found["clip_ratio"] == pytest.approx(0.75)
    # A micro-batch without tokens has a mean of 0 / 0 and no weight.
    empty = sums([1.0], [2.0], mask=[0], loss=math.nan, clip_ratio=math.nan)
    assert not empty.any()
    # A loss that nobody handed in takes no weight from those that are there.
    assert measured(several + sums([1.0], [2.0], loss=None, clip_ratio=None))["loss"] == pytest.approx(0.5)


def test_a_perfect_a_useless_and_a_harmful_critic() -> None:
    returns = [1.0, 2.0, 3.0, 6.0]
    assert measured(sums(returns, returns))["explained_variance"] == 1.0
    # A constant offset is no variance.
    assert measured(sums([r + 10.0 for r in returns], returns))["explained_variance"] == pytest.approx(1.0, abs=1e-12)
    # Here the raw sums give R - V a variance of -2e-10: never more than everything is explained.
    seven = np.linspace(1.0, 2.0, 7)
    assert measured(sums(seven - 1000.1, seven))["explained_variance"] == 1.0
    assert measured(sums([3.0] * 4, returns))["explained_variance"] == pytest.approx(0.0, abs=1e-12)
    # V = -R: Var(2R) / Var(R) = 4, and 1 - 4 = -3.
    assert measured(sums([-r for r in returns], returns))["explained_variance"] == pytest.approx(-3.0, abs=1e-12)


@pytest.mark.parametrize(
    ("returns", "constant"),
    [
        ([0.0, 0.0, 0.0], True),
        ([1000.1] * 7, True),  # raw sums leave a rounding error of 1e-10 here, not 0
        ([0.0, 1.9e-4], True),  # variance (0.95e-4)^2 = 9.0e-9, the line is 1e-8 x max(1, mean R^2) = 1e-8
        ([0.0, 2.1e-4], False),  # 1.1e-8
        ([1e3 - 0.09, 1e3 + 0.09], True),  # 0.0081; the line is 1e-8 x 1e6 = 0.01
        ([1e3 - 0.11, 1e3 + 0.11], False),  # 0.0121
    ],
)
def test_constant_returns_have_no_explained_variance(returns: list[float], constant: bool) -> None:
    metrics, missing = finish(sums([0.0] * len(returns), returns))
    assert (metrics["rlmon/value/explained_variance"] is None) == constant
    assert missing.get("rlmon/value/explained_variance", "") == ("returns are constant" if constant else "")


def test_returns_far_from_zero_keep_their_digits() -> None:
    """Mean 1,000, deviation 1, the critic at 0 and then near: 64 micro-batches of 4 x 100 tokens."""
    rng = np.random.default_rng(0)
    returns = 1e3 + rng.normal(size=(64, 4, 100))
    for values in (np.zeros(returns.shape), returns + 0.3 * rng.normal(size=returns.shape)):
        total = np.sum([sums(v, r) for v, r in zip(values, returns, strict=True)], axis=0)
        exact = 1.0 - np.var(returns - values) / np.var(returns)
        # 1e-15 x mean((R - V)^2) / Var(R) = 1e-15 x 1e6 / 1 = 1e-9
        assert measured(total)["explained_variance"] == pytest.approx(exact, abs=1e-9)


def test_a_variance_that_rounding_hides_is_not_measured() -> None:
    # mean((R - V)^2) / Var(R) = 1e16 / 1: an error of 1e-15 of it is 10, and the line is 1e-3.
    metrics, missing = finish(sums([1e8, 1e8], [-1.0, 1.0]))
    assert metrics["rlmon/value/explained_variance"] is None
    assert "float64" in missing["rlmon/value/explained_variance"]
    # 1e10 / 1: an error of 1e-5. The critic does not vary: 0 is explained.
    assert measured(sums([1e5, 1e5], [-1.0, 1.0]))["explained_variance"] == pytest.approx(0.0, abs=1e-5)


def test_nothing_observed_is_nothing_measured() -> None:
    metrics, missing = finish(np.zeros(SUMS.itemsize // 8))
    assert set(metrics.values()) == {None}
    assert set(missing.values()) == {"no values were observed in this step"}


def test_non_finite_values_are_left_out_of_their_own_sums_and_counted_once_a_token() -> None:
    values, returns = [1.0, math.nan, 3.0, 5.0], [2.0, 4.0, math.inf, 6.0]
    vector = sums(values, returns, [0.5, math.nan, 0.5, 0.5], loss=math.inf)
    # Tokens 2 and 3, and the loss.
    assert non_finite(vector) == 3.0
    metrics, missing = finish(vector)
    assert metrics["rlmon/value/mean"] == pytest.approx((1 + 3 + 5) / 3)
    assert metrics["rlmon/value/return_mean"] == pytest.approx((2 + 4 + 6) / 3)
    # Both are finite at tokens 1 and 4, where R - V = 1.
    assert metrics["rlmon/value/explained_variance"] == pytest.approx(1.0, abs=1e-12)
    assert metrics["rlmon/value/advantage_p95"] == pytest.approx(0.5, rel=WIDTH)
    assert missing == {"rlmon/value/loss": "no finite value loss"}
    assert non_finite(sums([1.0, 2.0], [2.0, 2.0], [math.nan, 0.0])) == 1.0, "an advantage alone"
    # Outside of the mask anything may stand.
    assert non_finite(sums([math.nan, 1.0], [math.nan, 1.0], mask=[0, 1])) == 0.0
    nothing, why = finish(sums([math.nan], [math.nan], [math.nan], loss=math.nan, clip_ratio=math.nan))
    assert set(nothing.values()) == {None}
    assert "no values were observed in this step" not in why.values()


def test_squares_beyond_float64_are_not_measured() -> None:
    metrics, missing = finish(sums([0.0, 0.0], [1e200, -1e200], loss=1.0))
    assert metrics["rlmon/value/explained_variance"] is None
    assert missing == {"rlmon/value/explained_variance": "the sums are not finite"}
    # Clipped to the outermost bins.
    assert metrics["rlmon/value/return_p95"] == pytest.approx(1e6, rel=WIDTH)
    assert metrics["rlmon/value/return_p05"] == pytest.approx(-1e6, rel=WIDTH)


def test_shapes_that_do_not_fit() -> None:
    two = np.ones((2, 3))
    with pytest.raises(ValueError, match="returns_BT has shape"):
        value_sums(two, np.ones((2, 4)), two, two, None, None)
    with pytest.raises(ValueError, match="must be"):
        value_sums(np.ones(3), np.ones(3), np.ones(3), np.ones(3), None, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_give_what_arrays_give_and_stay_as_they_were(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 5).to(dtype).requires_grad_()
    returns, advantages = torch.randn(3, 5).to(dtype), torch.randn(3, 5).to(dtype)
    mask = torch.rand(3, 5) < 0.7
    loss = (values.float().square().mean() + 1).to(torch.float32)
    before, state = values.detach().clone(), torch.get_rng_state()
    vector = value_sums(values, returns, advantages, mask, loss, 0.25)
    assert vector.dtype == np.float64
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(values.detach(), before)
    assert values.grad is None
    wide = [tensor.detach().double().numpy() for tensor in (values, returns, advantages)]
    expected = value_sums(*wide, mask.numpy(), float(loss.detach()), 0.25)
    np.testing.assert_allclose(vector, expected, rtol=1e-12)


def test_a_large_micro_batch_enters_the_histogram_thinned_and_the_means_whole() -> None:
    count = 3 * HISTOGRAM_TOKENS
    returns = np.linspace(-1.0, 1.0, count).reshape(3, -1)
    found = measured(sums(np.zeros(returns.shape), returns))
    assert found["return_mean"] == pytest.approx(0.0, abs=1e-12)
    # Uniform on [-1, 1]: the 5 % quantile is -0.9, the 75 % quantile 0.5; every third token of a line keeps both.
    assert found["return_p05"] == pytest.approx(-0.9, rel=WIDTH)
    assert found["return_p75"] == pytest.approx(0.5, rel=WIDTH)
    vector = sums(np.zeros(returns.shape), returns)
    assert vector[-(SIGNED_EDGES.size - 1) :].sum() == count


NUMBERS = st.floats(min_value=-1e5, max_value=1e5, allow_nan=False, width=32)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, st.booleans()), min_size=1, max_size=40)


@settings(max_examples=200)
@given(rows=ROWS, cut=st.integers(0, 40))
def test_ranks_add_up_and_agree_with_numpy_on_all_tokens(
    rows: list[tuple[float, float, float, bool]], cut: int
) -> None:
    values, returns, advantages, mask = (np.array([column], dtype=np.float64) for column in zip(*rows, strict=True))
    kept = mask != 0

    def part(where: slice) -> NDArray[np.float64]:
        table = [column[:, where] for column in (values, returns, advantages, mask)]
        of_part = table[3] != 0
        # Any function of the tokens, averaged over them, as a loss is.
        loss = float(np.abs(table[0][of_part]).mean()) if of_part.any() else math.nan
        return value_sums(*table, loss, float(of_part.any()))

    whole, split = finish(part(slice(None))), finish(part(slice(0, cut)) + part(slice(cut, None)))
    assert whole[1] == split[1]
    if not kept.any():
        assert set(whole[0].values()) == {None}
        return
    found = measured(part(slice(None)))
    v, r, a = values[kept], returns[kept], advantages[kept]
    rounding = 1e-14 * (np.square(r - v).mean() + np.square(r).mean()) / max(np.var(r), 1e-8)
    for name, value in whole[0].items():
        slack = rounding * (1 + abs(value or 0.0)) if name.endswith("variance") else 0.0
        assert split[0][name] == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9 + slack)), name
    assert found["loss"] == pytest.approx(np.abs(v).mean(), rel=1e-9)
    assert found["mean"] == pytest.approx(v.mean(), rel=1e-9, abs=1e-9)
    assert found["return_mean"] == pytest.approx(r.mean(), rel=1e-9, abs=1e-9)
    explained = found["explained_variance"]
    if explained is not None:
        exact = 1.0 - np.var(r - v) / np.var(r)
        assert explained <= 1.0
        assert explained == pytest.approx(exact, rel=1e-9, abs=1e-9 + rounding * (1 + abs(exact)))
    for name, column in (("return", r), ("advantage", a)):
        order = np.sort(column)
        for percent in PERCENTS:
            # The value that a share of the tokens lies below: order statistics count from 0.
            wanted = order[min(int(percent / 100 * order.size), order.size - 1)]
            sketch = found[f"{name}_p{percent:02}"]
            assert sketch == pytest.approx(wanted, rel=0.025, abs=1e-4), (name, percent)


def test_catalogue_and_finish_name_the_same_metrics() -> None:
    stated = {metric.name for metric in catalog.METRICS if metric.name.startswith("rlmon/value/")}
    assert set(finish(np.zeros(SUMS.itemsize // 8))[0]) == stated
    assert len(stated) == 5 + 2 * len(PERCENTS)
