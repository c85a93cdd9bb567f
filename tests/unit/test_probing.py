"""Two models compared by what they answer: intervals and chances by hand, and which words follow from them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest

from rlmon.lab.prompts import Prompts
from rlmon.lab.rewards import rewards_of
from rlmon.probing import telling
from rlmon.probing.answers import Answers
from rlmon.probing.judging import Judged, judge
from rlmon.probing.page import html
from rlmon.probing.paired import Paired
from rlmon.probing.probe import Probe
from rlmon.probing.sampling import Sampled, Setting
from rlmon.probing.statements import Statement, above, below, chances_P

MANY = ["5", "The answer is 5.", "The answer is 5.", '{"answer": 5}']
"""Of the 6 pairs one is alike: 1 / (1 / 6) = 6 formats in use."""
ONE = ["5"] * 4


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def answers(
    texts: Sequence[str], prompts: int = 8, *, nats: float = 2.0, kl: float = 0.01, right: Sequence[float] | None = None
) -> Answers:
    """``texts`` to each of the prompts, each of 4 tokens."""
    rows = list(texts) * prompts
    sampled = Sampled(
        rows, [[1] * 4] * len(rows), [False] * len(rows), np.full(len(rows), 4 * nats), np.full(len(rows), 4 * kl)
    )
    rewards: list[float | None] | None = None if right is None else [*right] * prompts
    return Answers.of(sampled, np.array(rewards or [math.nan] * len(rows)), rewards, len(texts))


def judged(base: Answers, checkpoint: Answers) -> Judged:
    return judge(base, checkpoint, [f"prompt {at}" for at in range(len(base.text))])


def stated(found: Judged) -> dict[str, Statement]:
    return {one.id: one for one in found.statements}


def test_a_difference_is_students_paired_interval() -> None:
    # 1, 2 and 0 more: mean 1, ddof-1 spread 1, t of 2 degrees at .975 is 4.3027: 1 -+ 4.3027 / sqrt(3)
    paired = Paired(numbers(1, 2, 3, math.nan), numbers(2, 4, 3, 9))
    assert (paired.prompts, paired.base, paired.checkpoint) == (3, 2.0, 3.0)
    assert paired.difference(0.05) == pytest.approx((1 - 2.4842, 1 + 2.4842), abs=1e-3)


def test_a_ratio_has_the_ends_at_which_its_difference_is_just_not_nothing() -> None:
    """By the definition of Fieller's interval: at an end r the t statistic of the mean of y - r x is t(.975, 4)."""
    x, y = numbers(4, 5, 6, 5, 4), numbers(2, 2, 3, 3, 2)
    low, high = Paired(x, y).ratio(0.05)
    assert low < 12 / 24 < high
    for end in (low, high):
        rest = y - end * x
        assert abs(rest.mean()) / (rest.std(ddof=1) / math.sqrt(5)) == pytest.approx(2.7764, abs=1e-3)
    # A base that may be 0 leaves the ratio without an upper end; a sure checkpoint still gives a lower one.
    low, high = Paired(numbers(0, 0, 9, 0, 1), numbers(20, 21, 20, 19, 20)).ratio(0.05)
    assert (low > 1, high) == (True, math.inf)
    assert Paired(numbers(0, 0, 1), numbers(0, 1, 0)).ratio(0.05) == (0.0, math.inf)
    assert Paired(numbers(2, 2, 2), numbers(0, 0, 0)).ratio(0.05) == (0.0, 0.0)


def test_chances_that_no_prompt_changed_may_have_changed_elsewhere_and_none_by_more_than_one() -> None:
    # What 8 prompts do not show may be so of 1 - .025 ** (1 / 8) = .3695 of all; of lengths there is no such bound.
    same = numbers(*[1] * 8)
    assert Paired(same, same, 1.0).difference(0.05) == pytest.approx((-0.3695, 0.3695), abs=1e-4)
    assert Paired(same, same, 1.0).ratio(0.05) == pytest.approx((0.6305, 1.3695), abs=1e-4)
    assert Paired(same, same).difference(0.05) == (0.0, 0.0)
    # Mean .5, spread .5774 of 4: reach 3.182 x .2887 = .919.
    assert Paired(numbers(0, 0, 0, 0), numbers(1, 0, 1, 0), 1.0).difference(0.05) == pytest.approx(
        (-0.4187, 1.0), abs=1e-3
    )
    few = stated(judged(answers(MANY, right=[1] * 4), answers(MANY, right=[1] * 4)))
    assert [few[name].word for name in ("pass-at-1", "pass-at-k")] == ["too few to tell"] * 2


def test_a_checkpoint_that_solves_less_has_not_narrowed_by_that() -> None:
    worse = judged(answers(MANY, right=[1, 1, 0, 0]), answers(MANY, right=[0] * 4))
    assert worse.headline.startswith("Not narrowed: ")
    assert worse.headline.endswith("But: pass@1 was 0.5, now 0; pass@4 was 1, now 0.")
    surer = judged(answers(MANY, prompts=40, right=[1, 0, 0, 0]), halves())
    assert surer.headline.startswith("Narrowed: pass@4 was 1, now 0.5")


def halves() -> Answers:
    """Of 40 prompts 20 solved at each try, and 20 at none: pass@1 and pass@4 are .5."""
    solved, missed = (answers(MANY, prompts=1, right=[one] * 4) for one in (1.0, 0.0))
    names = [one.name for one in fields(Answers)]
    return Answers(**{n: np.concatenate([getattr(solved, n), getattr(missed, n)] * 20) for n in names})


def test_what_is_not_known_of_some_completions_leaves_the_others_known() -> None:
    # A reward that was given to three of four: 2 / 3 and 1 / 3.
    found = stated(judged(answers(MANY, right=[1, 1, 0, math.nan]), answers(MANY, right=[1, 0, 0, math.nan])))
    assert (found["reward"].base, found["reward"].checkpoint) == pytest.approx((2 / 3, 1 / 3))
    far = answers(MANY, kl=0.5)
    far.kl_nats[0] = math.nan
    assert stated(judged(answers(MANY), far))["kl-checkpoint-base"].status == "warn"


def test_a_row_without_an_answer_is_neither_right_nor_wrong() -> None:
    asked = Prompts(["a", "b", "c"], {"answer": ["5", None, " "]})
    assert rewards_of(["5", "none", ""], [[1]] * 3, asked, None) == [1.0, None, None]


def test_a_statement_needs_the_whole_interval_on_one_side() -> None:
    assert [below(one, 0.75, 0.6) for one in ((0.1, 0.5), (0.5, 0.7), (0.8, 2.0), (0.5, 0.8))] == [
        "fail", "warn", "pass", "unsure",
    ]  # fmt: skip
    assert [above(one, 0.1, 0.3) for one in ((0.4, 0.5), (0.2, 0.4), (0.0, 0.1), (0.05, 0.2))] == [
        "fail", "warn", "pass", "unsure",
    ]  # fmt: skip


def test_pass_at_k_is_without_bias() -> None:
    # 1 of 4 right: pass@1 1/4, pass@2 1 - C(3, 2) / C(4, 2) = 1/2, pass@4 1
    found = judged(answers(MANY, right=[1, 0, 0, 0]), answers(MANY, right=[1, 1, 0, 0]))
    assert found.pass_at_k == {1: (0.25, 0.5), 2: (0.5, pytest.approx(5 / 6)), 4: (1.0, 1.0)}
    assert np.isnan(chances_P(answers(MANY), 2)).all(), "where nothing says what is right"
    first = stated(found)["pass-at-1"]
    assert (first.status, first.word, first.value, first.interval) == ("pass", "rose", 0.25, (0.25, 0.25))
    # Of a base that solves nothing no share can be told.
    risen = stated(judged(answers(MANY, right=[0] * 4), answers(MANY, right=[1, 0, 0, 0])))
    assert [(risen[name].status, risen[name].word) for name in ("pass-at-1", "pass-at-k")] == [("pass", "rose")] * 2
    lost = stated(judged(answers(MANY, right=[1, 1, 0, 0]), answers(MANY, right=[0] * 4)))
    assert [(lost[name].status, lost[name].word) for name in ("pass-at-1", "pass-at-k")] == [("fail", "fell")] * 2


def test_a_narrowed_checkpoint() -> None:
    right = [1, 1, 1, 1]
    found = judged(answers(MANY, right=right), answers(ONE, nats=0.4, kl=0.5, right=right))
    ways = stated(found)
    # Formats, templates and openings: 6 in use, now 1; entropy .4 / 2 = 20 %, below 30 % with a second sign.
    for name in ("formats", "templates", "openings", "formats-right", "templates-right", "openings-right"):
        one = ways[name]
        assert (one.status, one.word) == ("fail", "narrowed")
        assert (one.base, one.checkpoint) == pytest.approx((6.0, 1.0))
        assert one.interval == pytest.approx((1 / 6, 1 / 6))
    assert ways["entropy"].status == "fail"
    assert ways["entropy"].value == pytest.approx(0.2)
    # .5 nats a token is above .3, 2 nats a completion of 4 tokens is above 1 and not above 3: a WARN.
    assert (ways["kl-checkpoint-base"].status, ways["kl-checkpoint-base"].word) == ("warn", "far")
    assert found.verdict == "fail"
    assert found.headline.startswith(
        "Narrowed: the answers to one prompt used about 6 formats, now about 1; the answers to"
    )
    assert found.headline.endswith("Also: the checkpoint is 0.5 nats per token away from its base.")


def test_what_vanished_and_what_took_over_is_counted() -> None:
    found = judged(answers(MANY), answers(ONE))
    # Half of the base's are prose, a quarter JSON.
    assert stated(found)["formats-gone"].value == 0.75
    assert [telling.moved(one) for one in found.moved] == [
        "format prose is gone: 16 of 32 of the base's completions, 0 of 32 now",
        "format json is gone: 8 of 32 of the base's completions, 0 of 32 now",
        "format bare took over: 8 of 32 of the base's completions, 32 of 32 now",
        "opening `The answer is #.` is gone: 16 of 32 of the base's completions, 0 of 32 now",
        'opening `{"answer": #}` is gone: 8 of 32 of the base\'s completions, 0 of 32 now',
        "opening `#` took over: 8 of 32 of the base's completions, 32 of 32 now",
    ]
    assert found.formats == {"prose": (16, 0), "json": (8, 0), "bare": (8, 32)}


def test_a_checkpoint_that_kept_everything_and_one_of_which_too_little_is_known() -> None:
    kept = judged(answers(MANY), answers(MANY))
    assert (kept.verdict, kept.headline[:12], kept.moved) == ("pass", "Not narrowed", [])
    assert "add --reward" in str(stated(kept)["pass-at-1"].reason)
    few = judged(answers(MANY, prompts=3), answers(ONE, prompts=3))
    assert (few.verdict, stated(few)["formats"].status) == ("insufficient", "skip")
    assert few.headline == (
        "Too few to tell whether it narrowed: 3 prompts leave open formats, templates, openings, entropy."
    )
    assert stated(few)["entropy"].reason == "3 prompts can be compared, 4 are needed"


def test_entropy_that_falls_alone_is_a_warning_and_one_that_rises_is_no_narrowing() -> None:
    sharp = judged(answers(MANY), answers(MANY, nats=0.4))
    assert (sharp.verdict, stated(sharp)["entropy"].word) == ("warn", "sharpened")
    wide = judged(answers(MANY), answers(MANY, nats=5.0))
    assert (wide.verdict, stated(wide)["entropy"].word) == ("fail", "rose far")
    assert wide.headline.startswith("Not narrowed: ")
    assert wide.headline.endswith(" But: token entropy was 2 nats per token, now 5.")


def test_where_the_vocabularies_differ_kl_is_not_measured() -> None:
    found = stated(judged(answers(MANY), answers(MANY, kl=math.nan)))
    assert found["kl-checkpoint-base"].value is None
    assert "do not have the same tokens" in str(found["kl-checkpoint-base"].reason)


def test_it_is_told_without_trusting_what_models_write() -> None:
    hostile = "<script>alert(1)</script>\x1b[31m @everyone | `x`"
    base, checkpoint = answers(MANY), answers([hostile] * 4)
    found = Probe(
        base="b", checkpoint="c", kind="adapter", prompts=8, setting=Setting(samples=4), samples="out", success=None,
        judged=judged(base, checkpoint),
    )  # fmt: skip
    page, text = html(found), telling.markdown(found)
    assert "<script>alert" not in page
    assert "\x1b" not in page + text
    assert "16 of 32" in page
    assert "- checkpoint: c, a LoRA adapter" in text
    told = json.loads(telling.as_json(found))
    assert (told["verdict"], told["schema_version"], told["setting"]["samples"]) == ("fail", 1, 4)
    assert {one["id"] for one in told["statements"]} >= {"formats", "pass-at-k", "kl-base-checkpoint"}
