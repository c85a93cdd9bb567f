"""Our ``PPOTrainer`` beside the one that TRL had until 1.12: reward at equal samples and at equal CPU time.

    make bench-ppo

Runs in an environment of its own with TRL 1.12, where both exist. Same base, prompts and verifier: a reward function
for ours, a reward model around the same function for TRL's. Finished runs are kept in ``--cache`` and not run again
while their settings stay the same.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlmon.lab.bases import BASE_DIR
from rlmon.lab.demo import TRAINING, load_base
from rlmon.lab.evaluate import MAX_NEW_TOKENS, evaluate, held_out_sample
from rlmon.lab.libraries import quiet_libraries
from rlmon.lab.task import Question, reward_correct, split_questions
from studies.frontier import interval

ROUND_COMPLETIONS = 64
ROUNDS: Mapping[str, int] = {"1 x 1": 180, "4 x 4": 60}
"""By epochs x minibatches: 11,520 completions, and 3,840 where each is used for sixteen updates a round."""
SEEDS = (0, 1, 2)
TUNING_SEED = 100
LEARNING_RATES: Mapping[str, tuple[float, ...]] = {"1 x 1": (4e-4, 6.5e-4, 1e-3), "4 x 4": (1e-4, 2e-4, 4e-4)}
WINDOW_ROUNDS = 10
REACHED = 0.95
"""Training reward, as a mean of ``WINDOW_ROUNDS`` rounds, whose price in completions and CPU-seconds is compared."""
TEMPERATURE = 1.0
SHARED: Mapping[str, float] = {
    "gamma": 1.0,
    "lam": 0.95,
    "kl_coef": 0.0,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
}
"""Settings that have one name in both configs; TRL's ``cliprange`` and our ``epsilon`` are .2, too."""
PAGE = Path("docs/ppo/against-trl.md")
NOTES = "## What it means"
"""From this heading on the page is written by hand, and stays when the rest is written again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A trainer and how often it goes over a round."""

    name: str
    about: str
    critic: str | None
    """Of ours; ``None`` is TRL's trainer."""
    completions_per_prompt: int = 1
    epochs: int = 1
    minibatches: int = 1

    @property
    def schedule(self) -> str:
        return f"{self.epochs} x {self.minibatches}"

    @property
    def updates_per_round(self) -> int:
        return self.epochs * self.minibatches


def _arms(epochs: int, minibatches: int) -> list[Arm]:
    ending = "" if epochs == minibatches == 1 else f"-{epochs}x{minibatches}"

    def arm(name: str, about: str, critic: str | None, completions_per_prompt: int = 1) -> Arm:
        return Arm(
            name=name + ending, about=about, critic=critic, completions_per_prompt=completions_per_prompt,
            epochs=epochs, minibatches=minibatches,
        )  # fmt: skip

    return [
        arm("trl", "TRL 1.12 `PPOTrainer`", None),
        arm("ours", "ours, `critic: shared_detached` (the default)", "shared_detached"),
        arm("ours-separate", "ours, `critic: separate`", "separate"),
        arm("ours-pairs", "ours, `shared_detached`, 2 completions a prompt", "shared_detached", 2),
    ]


ARMS: Mapping[str, Arm] = {arm.name: arm for arm in (*_arms(1, 1), *_arms(4, 4)[:3])}
"""Arms by name, TRL's first in each schedule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one training run did."""

    arm: str
    learning_rate: float
    seed: int
    rewards: list[float]
    """Mean reward of the completions of each round, in order."""
    scored_at_cpu_seconds: list[float]
    """CPU-seconds of training before each of them had its rewards."""
    cpu_seconds: float
    """Of the whole ``train()``: process time, one thread."""
    accuracy: float
    """Held out, after training; share of completions at temperature 1 that state the right answer."""
    updates: int
    """Optimizer steps."""
    load: float = 0.0
    """Load of the machine at the end: CPU time grows with it where cores share caches."""

    @property
    def last_reward(self) -> float:
        """Mean of the last ``WINDOW_ROUNDS`` rounds."""
        return statistics.fmean(self.rewards[-WINDOW_ROUNDS:])

    def reward_within(self, cpu_seconds: float) -> float | None:
        """Mean reward of the last ``WINDOW_ROUNDS`` rounds that were scored within ``cpu_seconds`` of training;
        ``None`` where fewer were."""
        done = [
            reward for reward, at in zip(self.rewards, self.scored_at_cpu_seconds, strict=True) if at <= cpu_seconds
        ]
        return statistics.fmean(done[-WINDOW_ROUNDS:]) if len(done) >= WINDOW_ROUNDS else None

    def reached(self, reward: float) -> tuple[int, float] | None:
        """Completions sampled and CPU-seconds spent when the mean of ``WINDOW_ROUNDS`` rounds was first at least
        ``reward``; ``None`` where it never was."""
        for end in range(WINDOW_ROUNDS, len(self.rewards) + 1):
            if statistics.fmean(self.rewards[end - WINDOW_ROUNDS : end]) >= reward:
                return end * ROUND_COMPLETIONS, self.scored_at_cpu_seconds[end - 1]
        return None


def equal_cpu_seconds(runs: Sequence[Run]) -> float:
    """CPU-seconds of the fastest whole run. Raises ``ValueError`` for no runs."""
    return min(run.cpu_seconds for run in runs)


def chosen_rate(tuning: Sequence[Run]) -> float:
    """Learning rate of the run with the highest held-out accuracy; of equals the smallest."""
    return min(tuning, key=lambda run: (-run.accuracy, run.learning_rate)).learning_rate


def table(runs: Sequence[Run], arms: Sequence[Arm]) -> str:
    """A row for each of ``arms`` with runs in Markdown: means over seeds, and each seed's value for the accuracy."""
    rows = [
        [
            "trainer", "epochs x minibatches", "learning rate", "held-out accuracy", "last training reward",
            "CPU-s a run", "training reward at equal CPU", f"completions until {REACHED:g}", f"CPU-s until {REACHED:g}",
        ]
    ]  # fmt: skip
    for arm in arms:
        own = [run for run in runs if run.arm == arm.name]
        if not own:
            continue
        limit = equal_cpu_seconds(of_schedule(runs, arm.schedule))
        each = ", ".join(f"{run.accuracy:.3f}" for run in own)
        reached = [run.reached(REACHED) for run in own]
        rows.append(
            [
                arm.about,
                arm.schedule,
                f"{own[0].learning_rate:g}",
                f"{statistics.fmean(run.accuracy for run in own):.3f} ({each})",
                f"{statistics.fmean(run.last_reward for run in own):.3f}",
                f"{statistics.fmean(run.cpu_seconds for run in own):.1f}",
                _mean([run.reward_within(limit) for run in own], ".3f"),
                _mean([None if at is None else at[0] for at in reached], ",.0f"),
                _mean([None if at is None else at[1] for at in reached], ".1f"),
            ]
        )
    return markdown(rows)


def of_schedule(runs: Sequence[Run], schedule: str) -> list[Run]:
    """Those of ``runs`` with these epochs x minibatches."""
    return [run for run in runs if ARMS[run.arm].schedule == schedule]


def _mean(values: Sequence[float | None], shown: str) -> str:
    """Over the runs that have a value; where some have none, how many have."""
    measured = [value for value in values if value is not None]
    if not measured:
        return "-"
    of = "" if len(measured) == len(values) else f" ({len(measured)} of {len(values)})"
    return f"{statistics.fmean(measured):{shown}}{of}"


def differences(runs: Sequence[Run], arms: Sequence[Arm]) -> str:
    """Each of ours less TRL's under the same schedule, seed by seed: mean and 95 % interval by Student's t."""
    rows = [["less TRL's, paired by seed", "epochs x minibatches", "held-out accuracy", "reward at equal CPU", "CPU"]]
    of = {(run.arm, run.seed): run for run in runs}
    for arm in arms:
        other = next(a for a in ARMS.values() if a.critic is None and a.schedule == arm.schedule)
        seeds = [seed for name, seed in of if name == arm.name and (other.name, seed) in of]
        if arm.critic is None or not seeds:
            continue
        pairs = [(of[arm.name, seed], of[other.name, seed]) for seed in seeds]
        limit = equal_cpu_seconds(of_schedule(runs, arm.schedule))
        rewards = [(ours.reward_within(limit), theirs.reward_within(limit)) for ours, theirs in pairs]
        both = [(ours, theirs) for ours, theirs in rewards if ours is not None and theirs is not None]
        ratio = statistics.fmean(ours.cpu_seconds / theirs.cpu_seconds for ours, theirs in pairs)
        rows.append(
            [
                arm.about,
                arm.schedule,
                _interval([ours.accuracy - theirs.accuracy for ours, theirs in pairs]),
                _interval([ours - theirs for ours, theirs in both]) if both else "-",
                f"x {ratio:.2f}",
            ]
        )
    return markdown(rows)


def tuning_table(tuning: Sequence[Run], arms: Sequence[Arm]) -> str:
    """Held-out accuracy of each learning rate on the tuning seed, the chosen one in bold."""
    rates = sorted({run.learning_rate for run in tuning})
    rows = [["trainer", "epochs x minibatches", *(f"{rate:g}" for rate in rates)]]
    for arm in arms:
        found = {run.learning_rate: run for run in tuning if run.arm == arm.name}
        if not found:
            continue
        best = chosen_rate(list(found.values()))
        cells = [f"{found[rate].accuracy:.3f}" if rate in found else "-" for rate in rates]
        rows.append(
            [
                arm.about,
                arm.schedule,
                *(f"**{cell}**" if rate == best else cell for rate, cell in zip(rates, cells, strict=True)),
            ]
        )
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first of ``rows`` is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _interval(values: Sequence[float]) -> str:
    found = interval(values)
    return f"{found.mean:+.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")


# -- the verifier, wrapped both ways ---------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Rounds:
    """The verifier, and what it gave when. A reward function of TRL's signature."""

    started: float = field(default_factory=time.process_time)
    rewards: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    __name__ = "reward_correct"

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], **_: object
    ) -> list[float]:
        found = reward_correct(prompts, completions, answer)
        self.rewards.append(statistics.fmean(found))
        self.cpu_seconds.append(time.process_time() - self.started)
        return found


def reward_model(verifier: Rounds, tokenizer: Any, questions: Sequence[Question]) -> Any:
    """``verifier`` as the reward model that TRL's ``get_reward`` asks for.

    Its trunk takes the token ids [B, S] of prompts and completions apart at the end of the prompt, decodes the
    completions and gives their reward as the hidden state [B, S, 1] of every position; ``score`` is the identity.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    answers = {tuple(tokenizer(q.prompt)["input_ids"]): q for q in questions}
    # One token ends every prompt and occurs nowhere else in it, so the first one found is the prompt's end.
    (end,) = {ids[-1] for ids in answers}
    if any(end in ids[:-1] for ids in answers):
        raise ValueError("The last token of the prompts also occurs inside of them: they cannot be told apart.")

    class Trunk(torch.nn.Module):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
            asked, texts = [], []
            for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
                own = [token for token, kept in zip(ids, mask, strict=True) if kept]
                at = own.index(end) + 1
                asked.append(answers[tuple(own[:at])])
                texts.append(own[at:])
            completions = tokenizer.batch_decode(texts, skip_special_tokens=True)
            rewards = verifier([q.prompt for q in asked], completions, [q.answer for q in asked])
            hidden = torch.tensor(rewards).view(-1, 1, 1).expand(-1, input_ids.shape[1], 1)
            return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))

    class RewardModel(torch.nn.Module):  # type: ignore[misc]
        base_model_prefix = "trunk"

        def __init__(self) -> None:
            super().__init__()
            self.trunk = Trunk()
            self.score = torch.nn.Identity()

    return RewardModel()


def check_wrappings(tokenizer: Any, questions: Sequence[Question]) -> float:
    """Both wrappings give the same rewards to completions that the base samples. Returns their mean.

    Raises ``AssertionError`` where they differ, or where the sample has only right or only wrong answers.
    """
    import torch
    from trl.experimental.utils import first_true_indices, get_reward

    inputs = tokenizer([q.prompt for q in questions], return_tensors="pt", padding=True)
    queries = inputs["input_ids"]
    context_length = queries.shape[1]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        ids = load_base().generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, top_k=0, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        completion_ids = []
        lengths = first_true_indices(ids[:, context_length:] == tokenizer.pad_token_id)
        for row, length in zip(ids[:, context_length:].tolist(), lengths.tolist(), strict=True):
            completion_ids.append(row[:length])
        model = reward_model(Rounds(), tokenizer, questions)
        _, as_model, _ = get_reward(model, ids, tokenizer.pad_token_id, context_length)
    # What GRPO's engine hands to a reward function.
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    as_function = Rounds()([q.prompt for q in questions], texts, [q.answer for q in questions])
    assert as_model.tolist() == as_function, "the two wrappings of the verifier disagree"
    assert 0.0 < statistics.fmean(as_function) < 1.0, "the check saw only one kind of answer"
    return statistics.fmean(as_function)


# -- training --------------------------------------------------------------------------------------------------------


def settings(arm: Arm, learning_rate: float, seed: int, rounds: int) -> dict[str, Any]:
    """Keyword arguments of the arm's ``PPOConfig``."""
    common = {
        **{name: TRAINING[name] for name in (
            "lr_scheduler_type", "use_cpu", "bf16", "gradient_checkpointing", "dataloader_pin_memory", "report_to",
            "save_strategy", "disable_tqdm",
        )},
        **SHARED, "temperature": TEMPERATURE, "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    if arm.critic is None:
        return {
            **common,
            "total_episodes": rounds * ROUND_COMPLETIONS,
            # With gradient_accumulation_steps over 1 it would step once for that many minibatches.
            "per_device_train_batch_size": ROUND_COMPLETIONS,
            "gradient_accumulation_steps": 1,
            "local_rollout_forward_batch_size": ROUND_COMPLETIONS,
            "num_mini_batches": arm.minibatches,
            "num_ppo_epochs": arm.epochs,
            "response_length": MAX_NEW_TOKENS,
            "stop_token": "eos",
            "cliprange": 0.2,
            "num_sample_generations": 0,
        }
    return {
        **common,
        "max_steps": rounds * arm.updates_per_round,
        "per_device_train_batch_size": ROUND_COMPLETIONS // arm.minibatches,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": arm.minibatches,
        "num_iterations": arm.epochs,
        "num_generations": arm.completions_per_prompt,
        "max_completion_length": MAX_NEW_TOKENS,
        "epsilon": 0.2,
        "critic": arm.critic,
        # TRL's logs every round and cannot be told not to.
        "logging_steps": arm.updates_per_round,
        "max_grad_norm": TRAINING["max_grad_norm"],
    }


def train(arm: Arm, learning_rate: float, seed: int, rounds: int, output: Path) -> Run:
    """One run of ``rounds`` rounds, and its evaluation, which its CPU-seconds leave out."""
    import torch
    from datasets import Dataset
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, set_seed

    import rlmon.trl

    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    questions, held_out = split_questions()
    options = settings(arm, learning_rate, seed, rounds)
    set_seed(seed)
    model, verifier = load_base(), Rounds()
    if arm.critic is None:
        import trl.experimental.ppo as theirs

        value_model = AutoModelForSequenceClassification.from_pretrained(BASE_DIR, num_labels=1, dtype=torch.float32)
        trainer: Any = theirs.PPOTrainer(
            args=theirs.PPOConfig(output_dir=str(output), **options),
            processing_class=tokenizer,
            model=model,
            ref_model=None,
            reward_model=reward_model(verifier, tokenizer, questions),
            value_model=value_model,
            train_dataset=Dataset.from_list([{"input_ids": tokenizer(q.prompt)["input_ids"]} for q in questions]),
        )
    else:
        trainer = rlmon.trl.PPOTrainer(
            model=model,
            reward_funcs=verifier,
            args=rlmon.trl.PPOConfig(output_dir=str(output), **options),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": q.prompt, "answer": q.answer} for q in questions]),
        )
    trainer.remove_callback(PrinterCallback)
    updates = 0

    def count(*_: Any) -> None:
        nonlocal updates
        updates += 1

    handle = register_optimizer_step_post_hook(count)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            verifier.started = time.process_time()
            trainer.train()
            cpu_seconds = time.process_time() - verifier.started
    finally:
        handle.remove()
    if len(verifier.rewards) != rounds or updates != rounds * arm.updates_per_round:
        raise SystemExit(
            f"{arm.name}: {len(verifier.rewards)} rounds and {updates} updates, not {rounds} and "
            f"{rounds * arm.updates_per_round}: the comparison would not be fair"
        )
    policy = trainer.accelerator.unwrap_model(trainer.model)
    policy = policy.policy if arm.critic is None else policy
    judged = evaluate(policy, load_base(), tokenizer, held_out_sample(held_out), lambda text: "any", keep_samples=0)
    return Run(
        arm=arm.name,
        learning_rate=learning_rate,
        seed=seed,
        rewards=[round(reward, 6) for reward in verifier.rewards],
        scored_at_cpu_seconds=[round(at, 3) for at in verifier.cpu_seconds],
        cpu_seconds=round(cpu_seconds, 3),
        accuracy=judged.accuracy,
        updates=updates,
        load=round(os.getloadavg()[0], 1),
    )


def stored(cache: Path, arm: Arm, learning_rate: float, seed: int, rounds: int) -> Run:
    """The run from ``cache``; trained first where it has none with the same settings, versions and sources of ours."""
    sources = None if arm.critic is None else sources_sha256()
    wanted = {**settings(arm, learning_rate, seed, rounds), "packages": packages(), "sources_sha256": sources}
    path = cache / f"{arm.name}-{learning_rate:g}-seed{seed}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["settings"] == json.loads(json.dumps(wanted)):
            return Run(**kept["run"])
    run = train(arm, learning_rate, seed, rounds, cache / "output")
    path.write_text(json.dumps({"settings": wanted, "run": asdict(run)}))
    print(
        f"{arm.name} lr {learning_rate:g} seed {seed}: accuracy {run.accuracy:.3f}, last reward "
        f"{run.last_reward:.3f}, {run.cpu_seconds:.1f} CPU-s, load {run.load}",
        file=sys.stderr,
        flush=True,
    )
    return run


@lru_cache(maxsize=1)
def sources_sha256() -> str:
    """Of our trainer, as they were when this process began to train."""
    digest = hashlib.sha256()
    for path in sorted((BASE_DIR.parents[2] / "trl" / "ppo").glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def packages() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "trl", "transformers", "accelerate")}


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """One thread, quiet libraries, and nothing that imports made left for the garbage collector to walk.

    TRL's loop collects twice a round: without this its CPU time would grow with what happens to be imported.
    """
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import trl.experimental.ppo  # noqa: F401

    import rlmon.trl  # noqa: F401

    with quiet_libraries():
        yield


def comparison(runs: Sequence[Run], tuning: Sequence[Run], arms: Sequence[Arm]) -> str:
    """The three tables and what their numbers are."""
    lengths = {ARMS[run.arm].schedule: len(run.rewards) for run in runs}
    sampled = ", ".join(f"{rounds * ROUND_COMPLETIONS:,} ({schedule})" for schedule, rounds in lengths.items())
    limits = ", ".join(f"{equal_cpu_seconds(of_schedule(runs, each)):.1f} for {each}" for each in lengths)
    return f"""{table(runs, arms)}

Means over seeds {", ".join(map(str, SEEDS))}. Completions a run: {sampled}, in rounds of {ROUND_COMPLETIONS}.
*Held-out accuracy*: 1,024 completions after training, each seed's in brackets. *Last training reward*: mean of the
last {WINDOW_ROUNDS} rounds. *At equal CPU*: the same of the last rounds scored within as many CPU-seconds as the
fastest whole run with these epochs x minibatches took ({limits}). *Until {REACHED:g}*: when the mean of
{WINDOW_ROUNDS} rounds was first that high.

{differences(runs, arms)}

Mean and 95 % interval (Student's t, three seeds).

{tuning_table(tuning, arms)}

Held-out accuracy on seed {TUNING_SEED} for each learning rate; the best one, in bold, is used above. Learning curves
of all runs are in [against-trl.json](against-trl.json)."""


def page(text: str, runs: Sequence[Run]) -> str:
    """``PAGE`` down to the part that is written by hand."""
    versions = ", ".join(f"{name} {version}" for name, version in packages().items())
    loads = sorted(run.load for run in runs)
    return f"""# Beside TRL's former PPOTrainer

TRL removed its own `PPOTrainer` in 1.13. Here it and ours train the lab's arithmetic base (110 thousand parameters, on
a CPU) on the same prompts with the same verifier, in one environment with the last TRL that had it.

    make bench-ppo

Python {platform.python_version()}, {versions}; {platform.system()}, {platform.machine()}, {os.cpu_count()} cores,
one thread a run, load {loads[0]} to {loads[-1]}. CPU-seconds are process time of `train()`, without loading and
evaluation. Our trainer's sources: SHA-256 {sources_sha256()}. What `.cache/bench-ppo` keeps of them is not run again.

{text}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default=",".join(ARMS), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, help="of each run, instead of what the page needs")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench-ppo"))
    parser.add_argument("--page", type=Path, default=PAGE, help="its curves go beside it, as JSON")
    arguments = parser.parse_args()
    arms = [ARMS[name] for name in arguments.arms.split(",")]
    if importlib.metadata.version("trl") != "1.12.0":
        raise SystemExit("This needs TRL 1.12.0, the last with a PPOTrainer of its own. Type: make bench-ppo")
    from transformers import AutoTokenizer

    arguments.cache.mkdir(parents=True, exist_ok=True)
    tuning: list[Run] = []
    runs: list[Run] = []

    def run(arm: Arm, learning_rate: float, seed: int) -> Run:
        return stored(arguments.cache, arm, learning_rate, seed, arguments.rounds or ROUNDS[arm.schedule])

    with _settled():
        sources_sha256()
        agreed = check_wrappings(AutoTokenizer.from_pretrained(BASE_DIR), split_questions()[0][::121])
        print(f"both wrappings of the verifier agree; the base has {agreed:.3f}", file=sys.stderr)
        for schedule in dict.fromkeys(arm.schedule for arm in arms):
            of_schedule = [arm for arm in arms if arm.schedule == schedule]
            # Arm by arm inside of a rate and a seed, so that what else the machine does falls on all of them.
            for rate in LEARNING_RATES[schedule]:
                tuning += [run(arm, rate, TUNING_SEED) for arm in of_schedule]
            rates = {arm.name: chosen_rate([r for r in tuning if r.arm == arm.name]) for arm in of_schedule}
            for seed in SEEDS:
                runs += [run(arm, rates[arm.name], seed) for arm in of_schedule]
    first = comparison(runs, tuning, arms)
    print(first)
    old = arguments.page.read_text() if arguments.page.exists() else ""
    notes = old[old.index(NOTES) :] if NOTES in old else f"{NOTES}\n"
    arguments.page.write_text(page(first, [*tuning, *runs]) + "\n" + notes)
    curves = {
        "schema_version": 1,
        "packages": packages(),
        "sources_sha256": sources_sha256(),
        "runs": [asdict(run) for run in (*tuning, *runs)],
    }
    arguments.page.with_suffix(".json").write_text(json.dumps(curves, separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
