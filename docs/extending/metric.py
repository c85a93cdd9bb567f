"""A metric: the share of capital letters in each completion. A number per completion needs no class of its own."""

from rlmon.metrics import CompletionMetric


def capitals(completion: str) -> float | None:
    """Share of the letters that are capitals; None where there are no letters."""
    letters = [character for character in completion if character.isalpha()]
    return sum(letter.isupper() for letter in letters) / len(letters) if letters else None


SHOUTING = CompletionMetric(
    "shouting/share",
    capitals,
    unit="share of letters",
    low=0.0,
    high=1.0,
    bad="up",
    formula="capital letters over all letters, mean over completions",
)
