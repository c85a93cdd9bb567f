"""Diversity of words at a fixed budget, near-duplicates, repetition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import rlmon.metrics.text as text
from rlmon.metrics.collision import PAIRS
from rlmon.metrics.families.format import HILL
from rlmon.metrics.family import (
    NO_ROUND,
    Entries,
    Metric,
    MetricFamily,
    Numbers,
    RankRows,
    RoundRows,
    Shape,
    StepSums,
    Sums,
)

NEAR_DUPLICATE = 0.8
_WITHIN = {
    "answers": "no prompt has two completions with an answer",
    "templates": "no prompt has two completions",
    "templates_correct": "no prompt has two rewarded completions",
}
"""What there are effective numbers of within prompts, and why there is none."""
_entry = Entries(family="text", needs="completions", kind="local")


def _entries() -> Iterator[Metric]:
    budget = "at a budget of 64 words a completion, cut to a power of two"
    near = "pairs with sketch Jaccard of 4-grams at or above .8, at most 1,000 pairs a rank"
    across, within = "collision/template_across", "collision/template_within"
    for n in (1, 2, 3):
        yield _entry(
            f"distinct_{n}", "share", 0, 1, "down", f"distinct / all word {n}-grams {budget}",
            source="Li et al. 2016", instead=across,
        )  # fmt: skip
    yield _entry(
        "compression_ratio", "ratio", 0, None, "up", f"bytes / zlib level 1 bytes {budget}",
        source="arXiv 2403.00553", instead=across,
    )  # fmt: skip
    yield _entry(
        "budget_words", "words", 256, None, "none", "words that these were measured on, per rank",
        instead="health/length_mean",
    )  # fmt: skip
    yield _entry(
        "repetition", "share", 0, 1, "up",
        "mean over completions of 1 - distinct / all 4-grams (token ids, else words)",
        source="TRL #6058 (with 3-grams)", kind="exact",
    )  # fmt: skip
    yield _entry(
        "near_duplicate_across", "share", 0, 1, "up", near + ", different prompts", source="Broder 1997", instead=across
    )
    yield _entry(
        "near_duplicate_within", "share", 0, 1, "up", near + ", one prompt", source="Broder 1997", instead=within
    )
    yield _entry(
        "similarity_within", "share", 0, 1, "up", "mean sketch Jaccard of 4-grams over pairs of one prompt",
        source="Broder 1997", instead=within,
    )  # fmt: skip
    yield _entry(
        "effective_answers_within", "answers", 1, None, "down",
        "mean over prompts of exp(-sum p ln p) over final answers",
        source="NoveltyBench, arXiv 2504.05228", kind="exact",
    )  # fmt: skip
    yield _entry(
        "effective_templates_within", "templates", 1, None, "down",
        "mean over prompts of exp(-sum p ln p) over templates", source=HILL, kind="exact",
    )  # fmt: skip
    yield _entry(
        "effective_templates_within_correct", "templates", 1, None, "down",
        "the same over rewarded completions of prompts with 2 or more of them",
        source=HILL, needs="rewards", kind="exact", of_successes=True,
    )  # fmt: skip
    yield _entry("answer_share", "share", 0, 1, "down", "completions whose final answer can be read", kind="exact")


class Text(MetricFamily):
    name = "text"
    about = "Diversity of words at a fixed budget, near-duplicates, repetition."
    entries = tuple(_entries())

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        names = ("words", "ranks", "raw_bytes", "compressed_bytes", "repetition", "repetition_rows", "answered")
        within = (name for of in _WITHIN for name in (f"{of}_within", f"{of}_within_prompts"))
        return {
            **dict.fromkeys((*names, *within), ()),
            "distinct": (3,),
            "grams": (3,),
            "near_duplicates": PAIRS,
        }

    def add_rows(self, sums: Sums, seen: RankRows) -> None:
        words = seen.features.words
        if words.words:
            sums["words"] += words.words
            sums["ranks"] += 1.0
            sums["raw_bytes"] += words.raw_bytes
            sums["compressed_bytes"] += words.compressed_bytes
            sums["distinct"] += words.distinct
            sums["grams"] += words.total
        has_grams = seen.features.grams > 0
        sums["repetition"] += seen.features.repetition_B[has_grams].sum()
        sums["repetition_rows"] += has_grams.sum()
        sums["answered"] += (seen.features.answer_code >= 0).sum()
        near = sums["near_duplicates"]
        for side, found in zip(("across", "within"), seen.sketch_similarity, strict=True):
            near[f"{side}_sum"] += (found >= NEAR_DUPLICATE).sum()
            near[f"{side}_pairs"] += found.size

    def add_round(self, sums: Sums, seen: RoundRows) -> None:
        template, answer = (seen.rows[name].astype("i8") for name in ("template", "answer"))
        for name, value, keep in (
            ("templates", template, None),
            ("templates_correct", template, seen.rows["success"] > 0),
            ("answers", answer, answer >= 0),
        ):
            total, prompts = text.effective_numbers(value, seen.prompt_B, keep)
            sums[f"{name}_within"] += total
            sums[f"{name}_within_prompts"] += prompts

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        small = "fewer than 256 words in the round"
        for at in range(3):
            out.ratio(f"text/distinct_{at + 1}", sums["distinct"][..., at], sums["grams"][..., at], small)
        out.ratio("text/compression_ratio", sums["raw_bytes"], sums["compressed_bytes"], small)
        out.ratio("text/budget_words", sums["words"], sums["ranks"], small)
        out.ratio("text/repetition", sums["repetition"], sums["repetition_rows"], "no completion has 4 tokens")
        near, similar = sums["near_duplicates"], step.sums["collision"]["similarity"]
        alone, apart = (f"no pair of {which} with 4-grams" for which in ("one prompt", "different prompts"))
        out.ratio("text/near_duplicate_across", near["across_sum"], near["across_pairs"], apart)
        out.ratio("text/near_duplicate_within", near["within_sum"], near["within_pairs"], alone)
        out.ratio("text/similarity_within", similar["within_sum"], similar["within_pairs"], alone)
        for of, lacking in _WITHIN.items():
            kind, _, correct = of.partition("_")
            name = f"text/effective_{kind}_within" + (f"_{correct}" if correct else "")
            out.ratio(name, sums[f"{of}_within"], sums[f"{of}_within_prompts"], lacking)
        parsed = step.sums["format"]["mode_count"].sum(axis=-1)  # a row of a log may have no completion
        out.ratio("text/answer_share", sums["answered"], parsed, NO_ROUND)
