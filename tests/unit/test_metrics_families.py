"""A round from texts to the numbers of the catalogue."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import torch
from kl_reference import kl_estimators
from one_round import FAMILIES, MODES, blocks, finished, flat, sums, tokens, trained

from rlmon.metrics import catalog
from rlmon.metrics.families.entropy import NO_TOKENS
from rlmon.metrics.family import add_to
from rlmon.metrics.features import Featurizer
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.rows import rows_of
from rlmon.metrics.tokens import KLSample, token_sums
from rlmon.records import RolloutBatch

VOCABULARY = [chr(i) for i in range(128)]
TEXTS = (
    "Ann has 16 figs now.",
    "7 + 9 = \\boxed{16}",
    "print(7 + 9)",
    '{"answer": 16}',
    "1. Add 7 and 9\n2. Get 16",
    "<answer>16</answer>",
)


def make(completions, *, group_size=2, rewards=None, advantages=None, sources=None, prompt_ids=None) -> RolloutBatch:
    rows = len(completions)
    return RolloutBatch(
        round=0,
        split="train",
        step=1,
        group_size=group_size,
        global_row=list(range(rows)),
        prompt_id=[f"p{i // group_size}" for i in range(rows)] if prompt_ids is None else prompt_ids,
        source=["s"] * rows if sources is None else sources,
        prompts=["a prompt"] * rows,
        completions=list(completions),
        prompt_ids=[[65]] * rows,
        completion_ids=[[min(ord(mark), 127) for mark in completion] for completion in completions],
        reward=rewards,
        advantages=advantages,
        truncated=[False] * rows,
    )


def measured(batch: RolloutBatch, base=None, hard=None):
    features = Featurizer(MODES, b"secret", VOCABULARY).features(batch)
    added = sums(batch, features, hard)
    metrics, missing = finished(added, base)
    return {name.removeprefix("rlmon/"): value for name, value in metrics.items()}, missing, added


def test_formats_on_paper() -> None:
    # 8 completions: 4 prose, 4 python; python is rewarded, prose is not.
    batch = make([TEXTS[0], TEXTS[2]] * 4, rewards=[0.0, 1.0] * 4)
    metrics, _, _ = measured(batch)
    assert metrics["format/effective"] == pytest.approx(2.0)
    assert metrics["format/effective_correct"] == 1.0
    # Each prompt of two has both formats.
    assert metrics["format/effective_within"] == pytest.approx(2.0)
    assert metrics["format/share/python"] == metrics["format/top_share"] == 0.5
    assert metrics["format/other_share"] == 0.0
    assert metrics["format/reward/python"] == 1.0
    # prose stands first among equals? argmax takes python (tried before prose), the best mode: no gap.
    assert metrics["format/top_reward_gap"] == 0.0
    # Across pairs: of 28 pairs 12 agree, none within the 4 prompts: 12 of 24.
    assert metrics["collision/mode_across"] == 0.5
    assert metrics["collision/mode_across_effective"] == 2.0
    assert metrics["collision/mode_within"] == 0.0
    assert metrics["collision/mode_within_effective"] is None
    # The answer is 16 in both formats.
    assert metrics["collision/answer_across"] == 1.0
    assert metrics["group/lone_success"] == 1.0


def test_openings_templates_and_moves_among_right_answers_on_paper() -> None:
    # One opening of eight words and two templates, and an answer of another kind.
    first, second, other = "We add the two numbers first of all: 7.", "We add the two numbers first of all.", "It is 7."
    texts, rewards = [first, second, other, first, other, first], [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    metrics, _, _ = measured(make(texts, group_size=3, rewards=rewards))
    # Right: (first, second) of one prompt, (first, other) of another. Within: 1 of 2 pairs opens alike, and across
    # first-first and second-first of 4.
    assert metrics["collision/opening_correct_within"] == metrics["collision/opening_correct_across"] == 0.5
    assert metrics["collision/opening_correct_within_effective"] == 2.0
    found = blocks(make(texts, group_size=3, rewards=rewards), Featurizer(MODES, b"s").features(make(texts)))
    assert found[0].stats["opening_collision_correct"] == found[0].stats["opening_collision_correct_within"] == 0.5
    assert found[0].stats["template_collision_correct_within"] == 0.0
    # As a whole only first-first is one text.
    assert metrics["collision/template_correct_within"] == 0.0
    assert metrics["collision/template_correct_within_effective"] is None
    assert metrics["collision/template_correct_across_effective"] == 4.0
    # Of all completions: 2 of 6 pairs within open alike.
    assert metrics["collision/opening_within_effective"] == pytest.approx(3.0)
    right = [text for text, reward in zip(texts, rewards, strict=True) if reward]
    alone, _, _ = measured(make(right))
    for side in ("across", "within"):
        assert metrics[f"moves/effective_{side}_correct"] == pytest.approx(alone[f"moves/effective_{side}"])
        assert metrics[f"moves/effective_{side}_correct"] != pytest.approx(metrics[f"moves/effective_{side}"])


def test_without_a_right_answer_nothing_is_said_of_right_answers() -> None:
    metrics, missing, _ = measured(make(list(TEXTS), rewards=[0.0] * 5 + [1.0]))
    # One right answer is no pair.
    for name in (
        "collision/opening_correct_within",
        "collision/template_correct_across",
        "collision/mode_correct_across",
    ):
        assert metrics[name] is metrics[f"{name}_effective"] is None
        assert missing[f"rlmon/{name}"].startswith("no pair of rewarded completions")
    assert metrics["moves/effective_within_correct"] is None
    assert missing["rlmon/moves/effective_within_correct"] == (
        "no pair of rewarded completions of one prompt with openers"
    )


def test_a_change_against_the_base_is_measured() -> None:
    _, _, base = measured(make(list(TEXTS) * 10))
    metrics, _, _ = measured(make([TEXTS[2]] * 60), base)
    # Base shares are 1/6 of 60: (5/6)^60 = 1.8e-5, so the other five modes are extinct.
    assert metrics["format/extinct"] == 5.0
    assert metrics["format/newborn"] == 0.0
    assert metrics["format/effective_ratio_to_base"] == pytest.approx(1 / 6)
    want = scipy.spatial.distance.jensenshannon([1 / 6] * 6, [0, 0, 1, 0, 0, 0], base=2)
    assert metrics["format/js_to_base"] == pytest.approx(want)
    back, _, _ = measured(make(list(TEXTS) * 10), measured(make([TEXTS[2]] * 60))[2])
    assert back["format/newborn"] == 5.0


def test_lone_success_weight_needs_a_ledger_and_a_hard_prompt() -> None:
    # Two groups of 4, each with one success of |A| 1.5 and failures of .5: 3 of each sum 3 -> lone share .5.
    rewards = [1.0, 0.0, 0.0, 0.0] * 2
    advantages = [1.5, -0.5, -0.5, -0.5] * 2
    batch = make([TEXTS[0]] * 8, group_size=4, rewards=rewards, advantages=advantages)
    metrics, missing, _ = measured(batch)
    assert metrics["group/lone_weight"] == 0.5
    assert metrics["group/lone_success_weight"] is None
    assert missing["rlmon/group/lone_success_weight"] == "no ledger of earlier rounds"
    hard = np.array([True] * 4 + [False] * 4)
    metrics, _, _ = measured(batch, hard=hard)
    # Only the first prompt is hard: 1.5 of 6.
    assert metrics["group/lone_success_weight"] == 0.25
    found = blocks(batch, Featurizer(MODES, b"x").features(batch), hard)
    assert found[0].stats["lone_success_weight"] == 0.25


def test_every_missing_value_has_a_reason_and_an_empty_step_measures_nothing() -> None:
    metrics, missing = finished(FAMILIES.zeros())
    assert set(missing) == {name for name, value in metrics.items() if value is None}
    assert all(value is None for value in metrics.values())
    assert all(missing.values())
    batch = make(list(TEXTS))
    features = Featurizer(MODES, b"secret").features(batch)
    metrics, missing = finished(sums(batch, features))
    assert metrics["rlmon/collision/moves_across"] is None
    assert "vocabulary" in missing["rlmon/collision/moves_across"]
    assert metrics["rlmon/format/effective"] == pytest.approx(6.0)


def test_catalogue_and_finish_name_the_same_metrics() -> None:
    returned = set(finished(FAMILIES.zeros())[0])
    stated = {metric.name.replace(catalog.MODE, mode) for metric in catalog.METRICS for mode in MODES.names}
    elsewhere = {name for name in stated if name.startswith(("rlmon/intervention/", "rlmon/value/"))}
    assert returned == stated - elsewhere
    assert len({metric.name for metric in catalog.METRICS}) == len(catalog.METRICS)
    assert all(catalog.lookup(name) is not None for name in returned)
    assert catalog.lookup("rlmon/nothing") is None


def test_rewards_that_are_missing_or_not_finite_are_counted() -> None:
    rewards = [1.0, None, math.nan, math.inf]
    batch = dataclasses.replace(make(TEXTS[:4], rewards=rewards), rewards={"f": [1.0, None, math.nan, 0.0]})
    metrics, _, _ = measured(batch)
    assert metrics["health/reward_missing"] == 1.0
    # NaN and inf of the total, NaN of the function f.
    assert metrics["health/reward_non_finite"] == metrics["health/non_finite"] == 3.0
    assert metrics["health/reward_mean"] == 1.0


def test_lengths_truncation_and_repetition() -> None:
    batch = dataclasses.replace(make(["abcdefgh", "aaaaaaaa"]), truncated=[True, None])
    metrics, _, _ = measured(batch)
    assert metrics["health/length_mean"] == metrics["health/length_p5"] == metrics["health/length_p95"] == 8.0
    assert metrics["health/truncated"] == 1.0
    # 5 distinct of 5 4-grams, 1 of 5: repetition 0 and .8.
    assert metrics["text/repetition"] == pytest.approx(0.4)


def test_near_duplicates_within_a_prompt() -> None:
    same = "the quick brown fox jumps over the lazy dog again and again"
    metrics, _, _ = measured(make([same, same, same + "!", "something else entirely was written here"]))
    # Prompts: (same, same) J = 1; (same!, else) J near 0.
    assert metrics["text/near_duplicate_within"] == 0.5
    assert metrics["text/near_duplicate_across"] == 0.5
    assert metrics["collision/template_within"] == 0.5


def test_moves_of_one_opener_collide_fully() -> None:
    # Every sentence begins with "ab": one bucket, 1/E[k] = 1 everywhere.
    metrics, _, _ = measured(make(["ab cd. ab ce."[:6] * 3] * 4))
    assert metrics["moves/effective_across"] == pytest.approx(1.0)
    assert metrics["moves/effective_within"] == pytest.approx(1.0)


def test_blocks_are_prompt_disjoint_inside_one_source() -> None:
    rows = 80
    sources = ["a" if i // 2 < 37 else "b" for i in range(rows)]
    batch = make([TEXTS[i % 6] for i in range(rows)], sources=sources, rewards=[1.0] * rows)
    found = blocks(batch, Featurizer(MODES, b"s", VOCABULARY).features(batch))
    # 37 prompts of a: min(8, 18) = 8 blocks; 3 of b: 1 block.
    assert [block.source for block in found] == ["a"] * 8 + ["b"]
    assert sum(block.prompts for block in found) == 40
    assert sum(block.completions for block in found) == rows
    assert min(block.prompts for block in found) >= 2
    for block in found:
        assert {"mode_collision", "mode_collision_within", "move_collision", "reward", "all_good"} <= set(block.stats)
        assert all(math.isfinite(value) for value in block.stats.values())
        assert block.stats["all_good"] == 1.0


def test_a_single_prompt_gives_one_block_with_within_statistics_only() -> None:
    batch = make(TEXTS[:4], group_size=4)
    (block,) = blocks(batch, Featurizer(MODES, b"s").features(batch))
    assert (block.prompts, block.completions) == (1, 4)
    assert "mode_collision" not in block.stats
    assert block.stats["mode_collision_within"] == 0.0
    assert "reward" not in block.stats


def test_token_blocks_on_paper() -> None:
    rows = rows_of(make(list(TEXTS[:2]), group_size=1))
    assert FAMILIES.blocks_of_tokens(rows[:0]) == FAMILIES.blocks_of_tokens(rows) == []
    rows["trained_tokens"], rows["entropy_nats"] = [10.0, 30.0], [10.0, 0.0]
    rows["kl_nats"], rows["kl_tokens"], rows["kl_completion_tokens"] = [1.0, 0.0], [5.0, 0.0], [10.0, 30.0]
    entropy, kl = FAMILIES.blocks_of_tokens(rows)
    # Entropy 10 / 40; KL 1 / 5 per token; the one sampled row stands for both: .2 x (10 + 30) / 2 a sequence.
    assert (entropy.stats, entropy.completions) == ({"entropy_nats": 0.25}, 2)
    assert (kl.stats, kl.completions) == ({"kl_nats": 0.2, "kl_seq_nats": 4.0}, 1)


def test_entropy_metrics_against_the_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    entropy = torch.rand(8, 50, generator=generator) * 3
    logp = -entropy
    mask = torch.rand(8, 50, generator=generator) < 0.8
    advantage = torch.randn(8, generator=generator)
    modes = np.array([3, 3, 3, 3, 8, 8, 8, -1])
    added = tokens(token_sums(entropy, logp, mask, advantage), modes)
    metrics, missing = finished(added, added)
    values = entropy[mask].double().numpy()
    assert metrics["rlmon/entropy/mean"] == pytest.approx(values.mean(), abs=1e-9)
    assert metrics["rlmon/entropy/ratio_to_base"] == pytest.approx(1.0)
    for percent in (20, 50, 80, 95):
        assert metrics[f"rlmon/entropy/p{percent}"] == pytest.approx(np.percentile(values, percent), rel=0.06)
    weights = advantage[:, None].expand(8, 50)[mask].double().numpy()
    want = np.cov(-values, weights, ddof=0)[0, 1]
    assert metrics["rlmon/entropy/cov_logp_advantage"] == pytest.approx(want, abs=1e-6)
    python = entropy[:4][mask[:4]].double().numpy().mean()
    assert metrics["rlmon/entropy/mode/python"] == pytest.approx(python, abs=1e-9)
    assert "rlmon/entropy/mode/json" in missing
    assert metrics["rlmon/format/effective"] is None


def test_entropy_of_right_answers_on_paper() -> None:
    rows = rows_of(make(list(TEXTS[:4]), group_size=2))
    rows["success"] = [1.0, 0.0, 1.0, np.nan]
    rows["trained_tokens"], rows["entropy_nats"] = [10.0, 30.0, 40.0, 5.0], [20.0, 90.0, 5.0, 5.0]
    # 25 nats over the 50 tokens of the two right ones.
    assert finished(trained(rows))[0]["rlmon/entropy/mean_correct"] == 0.5
    rows["success"] = 0.0
    metrics, missing = finished(trained(rows))
    assert metrics["rlmon/entropy/mean_correct"] is None
    assert missing["rlmon/entropy/mean_correct"] == "no rewarded completion was trained on for the first time"
    assert finished(FAMILIES.zeros())[1]["rlmon/entropy/mean_correct"] == NO_TOKENS


def test_kl_metrics_are_those_of_the_estimators() -> None:
    rng = np.random.default_rng(0)
    row = rng.integers(0, 12, 400)
    kl = rng.random(400)
    logp_pi, logp_base = -rng.random(400), -rng.random(400)
    prompts = np.arange(12) // 3
    weight = rng.uniform(1.0, 4.0, 12)[row]
    kl[0] = math.nan
    sample = KLSample(
        kl_T=kl, reverse_T=np.ones(400), entropy_base_T=np.full(400, 2.0), row_T=row, weight_T=weight,
        tokens_B=np.append(np.full(12, 50.0), [0.0, 80.0]), mode_code_B=np.full(14, 3),
        prompt_B=np.append(prompts, [9, 9]),
        logp_pi_T=logp_pi, logp_base_T=logp_base,
    )  # fmt: skip
    added = FAMILIES.zeros()
    FAMILIES.add(added, lambda family, own: family.add_kl(own, sample))
    metrics, _ = finished(added)
    mean = np.average(kl[1:], weights=weight[1:])
    assert metrics["rlmon/kl/mean"] == pytest.approx(mean)
    assert metrics["rlmon/kl/reverse"] == pytest.approx(1.0)
    assert metrics["rlmon/kl/base_entropy"] == pytest.approx(2.0)
    assert metrics["rlmon/kl/mode/python"] == pytest.approx(mean)
    # 12 rows of 50 tokens are in the sample, one of 80 is not, and one has no token.
    assert metrics["rlmon/kl/seq"] == pytest.approx(mean * (12 * 50 + 80) / 13)
    want = kl_estimators(logp_pi, logp_base, prompts[row], weight)
    for name in ("k1", "k1_se", "k2", "k2_se", "k3", "k3_se"):
        assert metrics[f"rlmon/kl/{name}"] == pytest.approx(getattr(want, name), rel=1e-9)
    assert metrics["rlmon/health/non_finite"] == 1.0


def test_ranks_add_up_to_the_whole() -> None:
    rewards = [float(i % 3 == 0) for i in range(60)]
    whole = make([TEXTS[i % 6] for i in range(60)], rewards=rewards, advantages=rewards)
    parts = []
    for rows in (range(24), range(24, 60)):
        columns = {
            field.name: [getattr(whole, field.name)[i] for i in rows]
            for field in dataclasses.fields(whole)
            if isinstance(getattr(whole, field.name), list)
        }
        parts.append(measured(dataclasses.replace(whole, **columns))[2])
    one, two = flat(measured(whole)[2]), FAMILIES.zeros()
    for part in parts:
        add_to(two, part)
    two = flat(two)
    # Pairs and words are formed on each rank; within-prompt pairs and everything else are the same.
    for name, value in one.items():
        if name.startswith(("text/", "collision/similarity/")) and not name.startswith("text/answer"):
            continue
        if "/across_" not in name:
            np.testing.assert_allclose(two[name], value, atol=1e-6, err_msg=name)
    pairs = two["collision/mode/across_pairs"]
    assert pairs == 24 * 23 / 2 + 36 * 35 / 2 - two["collision/mode/within_pairs"]


def test_sampled_pairs_do_not_depend_on_the_order_of_rows() -> None:
    # 120 rows have 7,140 pairs, of which 1,000 are compared.
    rng = np.random.default_rng(0)
    whole = make(["".join(rng.choice(list("ab "), 30)) for _ in range(120)], group_size=12)
    order = rng.permutation(120).tolist()
    columns = {
        field.name: [getattr(whole, field.name)[i] for i in order]
        for field in dataclasses.fields(whole)
        if isinstance(getattr(whole, field.name), list)
    }
    one, two = measured(whole)[2], measured(dataclasses.replace(whole, **columns))[2]
    similarity = one["collision"]["similarity"]
    assert similarity["across_pairs"] == 500
    np.testing.assert_allclose(two["collision"]["similarity"].item(), similarity.item())


def test_keys_depend_on_the_secret_and_are_63_bits() -> None:
    batch = make(list(TEXTS))
    one = Featurizer(MODES, b"one").features(batch)
    two = Featurizer(MODES, b"two" * 40).features(batch)
    assert not np.array_equal(one.template_key, two.template_key)
    assert np.array_equal(one.template_key, Featurizer(MODES, b"one").features(batch).template_key)
    assert (one.template_key >= 0).all()
    assert (one.opening_key >= 0).all()
    assert all(key is None or 0 <= key < 2**63 for key in one.answer_key)


def test_texts_are_remembered_up_to_a_bound() -> None:
    calls = []

    def counting(text: str) -> bool:
        calls.append(text)
        return False

    featurizer = Featurizer(ModeSet.build({"counting": counting}), b"s", remembered_texts=4)
    featurizer.features(make(TEXTS[:3]))
    featurizer.features(make(TEXTS[:3]))
    assert len(calls) == 3
    featurizer.features(make([f"text number {i}" for i in range(50)]))
    assert len(featurizer._remembered) == 4


def test_stored_openers_are_the_64_heaviest() -> None:
    many = "".join(f".{chr(33 + i % 90)}{chr(33 + i // 7 % 90)}" for i in range(1_000))
    features = Featurizer(MODES, b"s", VOCABULARY).features(make([many, "ab"]))
    assert features.openers is not None
    assert features.opener_weights is not None
    assert len(features.openers[0]) == 64
    assert features.openers[0].dtype == np.int32
    assert features.opener_weights[0].dtype == np.float32
    assert (np.diff(features.opener_weights[0]) <= 0).all()
    assert features.opener_weights[1].tolist() == [1.0]


def test_a_round_of_hostile_texts_is_measured() -> None:
    texts = ["\ud800", "\x00\x01", "[" * 9_000, "<script>" * 50, "", "\n" * 500, "x" * 300_000, "\x1b[2J", "9" * 10_000]
    metrics, _, _ = measured(make(texts, group_size=3))
    assert metrics["format/other_share"] is not None
    found = blocks(make(texts, group_size=3), Featurizer(MODES, b"s").features(make(texts, group_size=3)))
    assert sum(block.completions for block in found) == len(texts)


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="prompts"):
        Featurizer(MODES, b"s").features(dataclasses.replace(make(list(TEXTS)), prompts=["one"]))


_RANDOM_STATES = """
import random, warnings
import numpy as np, torch
from one_round import MODES, blocks, finished, sums
from rlmon.metrics.features import Featurizer
from rlmon.metrics.ledger import SolveLedger
from rlmon.metrics.tokens import exact_kl, token_sums
from rlmon.records import RolloutBatch
n = 160
batch = RolloutBatch(
    round=0, split="train", step=1, group_size=4, global_row=list(range(n)), prompt_id=[str(i // 4) for i in range(n)],
    source=["s"] * n, prompts=["p"] * n, completions=[f"print({i}) and so on. " * 20 for i in range(n)],
    completion_ids=[[i % 50, 1, 2, 3, 4] for i in range(n)], reward=[0.0, 1.0] * (n // 2),
)
hidden, head = torch.ones(4, 8), torch.ones(11, 8)
before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), warnings.filters[:]
features = Featurizer(MODES, b"s", [str(i) for i in range(50)]).features(batch)
ledger = SolveLedger()
ledger.update(batch.prompt_id, batch.source, batch.reward, step=1)
hard = ledger.credibly_below(batch.prompt_id, batch.source)
finished(sums(batch, features, hard))
blocks(batch, features, hard)
token_sums(hidden, -hidden, hidden, hidden[:, 0])
exact_kl(hidden, head, hidden, head)
after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), warnings.filters[:]
assert before == after
"""


def test_no_random_state_and_no_warning_filter_is_touched() -> None:
    # In a process of its own: the type checker of the test run draws random numbers.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", _RANDOM_STATES], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_groups_of_one_carry_no_weight_of_lone_successes() -> None:
    """One completion a prompt (PPO): there is no group to be alone in, so nothing is measured, rather than 0."""
    batch = make(list(TEXTS), group_size=1, rewards=[1.0] * 3 + [0.0] * 3, advantages=[0.5] * 6)
    hard = np.ones(6, dtype=bool)
    metrics, missing, _ = measured(batch, hard=hard)
    for name in ("group/lone_weight", "group/lone_success_weight", "group/all_bad"):
        assert metrics[name] is None
        assert missing[f"rlmon/{name}"]
    found = blocks(batch, Featurizer(MODES, b"x").features(batch), hard)
    assert "lone_success_weight" not in found[0].stats
