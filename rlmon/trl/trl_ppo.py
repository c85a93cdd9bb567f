"""Watches TRL's own ``PPOTrainer`` (``trl.experimental.ppo``, TRL 1.8 to 1.12), as far as its loop lets itself be seen.

Its ``train()`` keeps everything in local variables and calls functions of its module by name, so those names are
replaced, from the start of ``train()`` of a watched trainer until it returns or raises. A replacement calls the
original exactly once, outside our own try, and then shows arguments and result to the watched trainers; each takes
only what comes from its own thread, models and tokens. Nothing here runs a forward: the policy's logits come from
generation, those of the base from TRL's forward of its reference.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlmon.config import RLMonConfig
from rlmon.errors import AttachError
from rlmon.metrics.prompts import prompt_identity
from rlmon.metrics.sampling import sample_tokens
from rlmon.metrics.tokens import ExactKL, exact_kl
from rlmon.records import RolloutBatch
from rlmon.trl import capabilities
from rlmon.trl.base import BaseModel, Kind, _adapter_refusal, _tuner_layers
from rlmon.trl.prompts import SourceMap, spread
from rlmon.trl.stored import stored_column

if TYPE_CHECKING:
    from rlmon.monitor import Monitor
    from rlmon.trl.helm import Helm

PLACE_OF = {
    "batch_generation": "capture.rollouts",
    "forward": "base.forward",
    "get_reward": "capture.rollouts",
    "masked_whiten": "capture.rollouts",
}
"""The module functions that are observed, and the part of the monitor that a failure there counts for."""
CHUNK_TOKENS = 128


class TrlPPOCapture:
    """The hooks on one ``trl.experimental.ppo.PPOTrainer``; holds no strong reference to it.

    A sibling of ``rlmon.trl.capture.Capture``. Raises ``AttachError`` in ``install`` where its loop already runs.
    """

    recorded_settings = (
        "batch_size", "cliprange", "cliprange_value", "gamma", "kl_coef", "kl_estimator", "lam",
        "local_rollout_forward_batch_size", "missing_eos_penalty", "num_mini_batches", "num_ppo_epochs",
        "response_length", "stop_token", "stop_token_id", "total_episodes", "vf_coef", "whiten_rewards",
    )  # fmt: skip
    group_size = 1
    critic = False
    """Its critic lives in local variables."""

    def __init__(self, trainer: Any, config: RLMonConfig) -> None:
        self._trainer = weakref.ref(trainer)
        self._config = config
        self._module = sys.modules[_home(trainer).__module__]
        self.monitor: Monitor | None = None
        self.base: BaseModel | None = None
        self.sources = SourceMap(None, frozenset(), "all")
        self.helm: Helm | None = None
        """Always ``None``: this loop has nothing that a rule could turn."""
        self._thread: int | None = None
        """The thread in which ``train()`` runs now."""
        self._sampling = False
        self._saw_generation = False
        self._round: _Round | None = None

    @property
    def trainer(self) -> Any:
        trainer = self._trainer()
        if trainer is None:
            raise RuntimeError("the monitored trainer is gone")
        return trainer

    def choose_base(self, config: RLMonConfig) -> BaseModel:
        """TRL's reference, where it is the policy as it starts. Raises ``AttachError`` for a base asked for by name
        that this loop cannot show."""
        trainer = self.trainer
        policy = self._policy()
        own: Kind = "adapter" if trainer.ref_model is None else "reference"
        asked = config.rlmon_base_kl
        if config.rlmon_base_model is not None or asked not in ("auto", "off", own):
            wanted = f"rlmon_base_kl={asked}" if config.rlmon_base_model is None else "rlmon_base_model"
            raise AttachError(
                f"{wanted} cannot work with TRL's PPOTrainer: its loop shows no base but its own reference ({own}). "
                "Use rlmon_base_kl: auto."
            )
        refusal = "rlmon_base_kl is off" if asked == "off" else _reference_refusal(trainer, policy)
        if refusal is not None and asked == own:
            raise AttachError(f"rlmon_base_kl={asked} cannot work here ({refusal}). Use rlmon_base_kl: auto.")
        seen = SimpleNamespace(
            accelerator=trainer.accelerator, model=policy, args=trainer.args, ref_model=trainer.ref_model
        )
        return BaseModel(seen, config, kind="off" if refusal is not None else own, reason=refusal or "")

    def build_sources(self, config: RLMonConfig) -> SourceMap:
        """Strata by template of the decoded prompts: the loop shows token ids only. Raises ``AttachError`` where a
        column was asked for by name."""
        if config.rlmon_source_column is not None:
            raise AttachError(
                "rlmon_source_column cannot work with TRL's PPOTrainer: its loop shows token ids, not dataset rows. "
                "Leave it out, or use rlmon.trl.PPOTrainer."
            )
        trainer = self.trainer
        ids = stored_column(trainer.train_dataset, "input_ids")
        if ids is None:
            return SourceMap(None, frozenset(), "all")
        decode = trainer.processing_class.decode
        prompts = [decode(ids[i], skip_special_tokens=True) for i in spread(len(ids))]
        return SourceMap.of_prompts(prompts, int(trainer.args.batch_size))

    def install(self) -> None:
        trainer = self.trainer
        missing = [name for name in PLACE_OF if not callable(getattr(self._module, name, None))]
        if missing:
            raise AttachError(
                f"This PPOTrainer's module has no {', '.join(missing)}: it is not the loop of TRL 1.8 to 1.12 that "
                "rlmon knows. Use rlmon.trl.PPOTrainer."
            )
        if _trains_now(trainer):
            raise AttachError(
                "TRL's PPOTrainer is in train() already, and its loop can only be watched from its start. Type "
                "RLMon(trainer) after building it, in place of callbacks=[RLMon()]."
            )
        trainer.train = self._around_train(trainer.train)
        trainer.generate_completions = self._around_samples(trainer.generate_completions)
        if self._config.rlmon_console and trainer.accelerator.is_main_process:
            print(capabilities.trl_ppo_notice(), file=sys.stderr, flush=True)

    def uninstall(self) -> None:
        self._leave()
        trainer = self._trainer()
        if trainer is not None:
            trainer.__dict__.pop("train", None)
            trainer.__dict__.pop("generate_completions", None)

    def step_begins(self, global_step: int, every: int) -> None:
        """Nothing: this loop has no such event, so a generation decides whether its step measures the base."""

    def step_ends(self) -> None:
        """Hand over what is still held of the step's round. Never raises."""
        monitor = self.monitor
        if monitor is None:
            return
        self._finish(monitor)
        if not self._saw_generation:
            monitor.fault("capture.rollouts", "a step ended whose generation was not seen")
        self._saw_generation = False

    def mirror(self, values: Mapping[str, float]) -> None:
        """Nothing: TRL has logged the step before it says that it ended."""

    # -- train() and what it calls ---------------------------------------------------------------------------------

    def _around_train(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def train(*args: Any, **kwargs: Any) -> Any:
            self._thread = threading.get_ident()
            _watch(self._module, self)
            try:
                return original(*args, **kwargs)
            finally:
                self._leave()

        return train

    def _leave(self) -> None:
        _unwatch(self._module, self)
        self._thread = None
        if self.monitor is not None:
            self._finish(self.monitor)

    def _around_samples(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def generate_completions(*args: Any, **kwargs: Any) -> Any:
            self._sampling = True
            try:
                return original(*args, **kwargs)
            finally:
                self._sampling = False

        return generate_completions

    def saw(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Take one call of a module function, if it is one of our trainer's updates. Never raises."""
        monitor = self.monitor
        if monitor is None or self._sampling or self._thread != threading.get_ident():
            return
        with monitor.guard(PLACE_OF[name]), torch.no_grad():
            getattr(self, f"_{name}")(monitor, result, *args, **kwargs)

    def _policy(self) -> Any:
        trainer = self.trainer
        return trainer.accelerator.unwrap_model(trainer.model).policy

    def _batch_generation(
        self, monitor: Monitor, result: Any, model: Any, queries: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        if model is not self._policy():
            return
        self._finish(monitor)
        self._saw_generation = True
        trainer, base = self.trainer, self.base
        sequences_BL, logits_BTV = result
        monitor.expect_rows(len(sequences_BL))
        round_ = self._round = _Round.begin(
            monitor.next_round("train"),
            trainer.state.global_step,
            queries,
            sequences_BL,
            stop=trainer.stop_token_id,
            pad=trainer.processing_class.pad_token_id,
        )
        with monitor.guard("capture.tokens"):
            round_.measure(logits_BTV)
        if base is not None and base.active and round_.step % self._config.rlmon_base_kl_every == 0:
            with monitor.guard("base.forward"):
                first = trainer.accelerator.process_index * len(round_)
                identity_B = [(round_.number, first + row) for row in range(len(round_))]
                chosen_BT, weight_B = sample_tokens(round_.own_BT.cpu().numpy(), identity_B, base.max_tokens)
                chosen = torch.as_tensor(chosen_BT, device=round_.own_BT.device)
                round_.comparison = _Comparison(logits_BTV, weight_B, chosen)

    def _forward(
        self, monitor: Monitor, result: Any, model: Any, query_responses: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        round_, trainer = self._round, self.trainer
        if round_ is None or round_.comparison is None or round_.comparison.logits_BTV is None:
            return
        reference = self._policy() if trainer.ref_model is None else trainer.ref_model
        if trainer.accelerator.unwrap_model(model) is trainer.accelerator.unwrap_model(reference):
            began = time.thread_time()
            temperature = float(trainer.args.temperature) + 1e-7
            round_.comparison.take(round_, query_responses, result.logits, temperature)
            round_.comparison.seconds += time.thread_time() - began

    def _get_reward(
        self, monitor: Monitor, result: Any, model: Any, query_responses: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        if self._round is not None and model is self.trainer.reward_model:
            self._round.take_scores(query_responses, result[1])

    def _masked_whiten(
        self, monitor: Monitor, result: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True
    ) -> None:
        round_ = self._round
        # Rewards are whitened in place, without the shift; advantages come last.
        if round_ is None or not shift_mean or not torch.equal(mask, round_.trained_BT):
            return
        round_.advantages_BT = torch.where(mask, result, torch.zeros_like(result))
        self._finish(monitor)

    # -- one round -------------------------------------------------------------------------------------------------

    def _finish(self, monitor: Monitor) -> None:
        round_, self._round = self._round, None
        if round_ is None:
            return
        with monitor.guard("capture.rollouts"):
            monitor.observe(self._batch(monitor, round_))
        rows_B2 = [[round_.number, row] for row in range(len(round_))]
        with monitor.guard("capture.tokens"):
            if round_.entropies_BT is not None:
                monitor.observe_tokens(
                    split="train",
                    rows_B2=rows_B2,
                    logps_BT=round_.logps_BT,
                    entropies_BT=round_.entropies_BT,
                    mask_BT=round_.own_BT,
                    advantages_B=round_.advantages_BT,
                )
        comparison = round_.comparison
        if comparison is None:
            return
        with monitor.guard("base.forward"):
            monitor.observe_kl(
                rows_b2=rows_B2,
                sampled_b=comparison.chosen_BT.sum(1).cpu().numpy(),
                tokens_b=round_.own_BT.sum(1).cpu().numpy(),
                weight_b=comparison.weight_B,
                result=comparison.result(),
                seconds=comparison.seconds,
            )

    def _batch(self, monitor: Monitor, round_: _Round) -> RolloutBatch:
        trainer = self.trainer
        rows = len(round_)
        first = trainer.accelerator.process_index * rows
        processing = trainer.processing_class
        ids, lengths = round_.responses_BT.cpu().numpy().astype(np.int32), round_.own_BT.sum(1).tolist()
        completion_ids = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        queries = round_.queries_BP.cpu().numpy().astype(np.int32)
        prompt_ids = [row[row != processing.pad_token_id] for row in queries]
        prompts = processing.batch_decode([row.tolist() for row in prompt_ids], skip_special_tokens=True)
        completions = processing.batch_decode([row.tolist() for row in completion_ids], skip_special_tokens=True)
        rewards: dict[str, Sequence[float | None]] = {}
        reward: list[float | None] = [None] * rows
        if round_.scored == rows:
            scores_B = torch.cat(round_.scores).double().cpu()
            rewards["reward_model"] = _or_none(scores_B)
            penalty = trainer.args.missing_eos_penalty
            if penalty is not None:
                endless_B = ~(round_.scored_BT == processing.eos_token_id).any(1).cpu()
                penalties_B = torch.where(endless_B, -float(penalty), 0.0).double()
                rewards["missing_eos_penalty"] = _or_none(penalties_B)
                scores_B = scores_B + penalties_B
            reward = _or_none(scores_B)
        else:
            monitor.fault("capture.rollouts", "the reward model's scores of a round were not seen")
        truncated: list[bool | None] = [None] * rows
        if trainer.stop_token_id is not None:
            truncated = (~round_.stopped_B).tolist()
        return RolloutBatch(
            round=round_.number,
            split="train",
            step=round_.step + 1,
            group_size=1,
            global_row=list(range(first, first + rows)),
            prompt_id=[prompt_identity(prompt) for prompt in prompts],
            source=[self.sources.source_of({"prompt": prompt}) for prompt in prompts],
            prompts=prompts,
            completions=completions,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            rewards=rewards,
            reward=reward,
            advantages=round_.mean_advantages(),
            truncated=truncated,
            policy_version=[round_.step] * rows,
        )


@dataclass
class _Comparison:
    """The policy against TRL's reference on some tokens of a round."""

    logits_BTV: torch.Tensor | None
    """Of generation, divided by the temperature. TRL holds them as long; a copy would double its largest tensor."""
    weight_B: NDArray[np.float64]
    """Tokens that each sampled one stands for (``metrics.sampling``)."""
    chosen_BT: torch.Tensor
    parts: list[ExactKL] = field(default_factory=list)
    rows: int = 0
    """Rows that the reference has been run on."""
    seconds: float = 0.0

    def take(self, round_: _Round, sequences_bL: torch.Tensor, logits_bLV: torch.Tensor, temperature: float) -> None:
        """One forward of the reference, on rows that continue those taken before."""
        begin, end = self.rows, self.rows + len(sequences_bL)
        if self.logits_BTV is None or not torch.equal(sequences_bL, round_.sequences_BL[begin:end]):
            return
        self.rows = end
        base_bTV = logits_bLV[:, round_.queries_BP.shape[1] - 1 : -1]
        places_N2 = self.chosen_BT.nonzero()
        places_N2 = places_N2[(places_N2[:, 0] >= begin) & (places_N2[:, 0] < end)]
        for place_n2 in places_N2.split(CHUNK_TOKENS):
            row_n, at_n = place_n2.unbind(1)
            self.parts.append(
                exact_kl(
                    self.logits_BTV[row_n, at_n],
                    lambda logits_nV: logits_nV,
                    base_bTV[row_n - begin, at_n],
                    lambda logits_nV: logits_nV.float() / temperature,
                    sampled_T=round_.responses_BT[row_n, at_n],
                )
            )
        if end >= len(self.logits_BTV):
            self.logits_BTV = None

    def result(self) -> ExactKL:
        if self.logits_BTV is not None:
            raise RuntimeError("TRL's forward of its reference was not seen on all rows of a round")
        columns = zip(*self.parts, strict=True)
        return ExactKL(*(np.concatenate(column) for column in columns)) if self.parts else ExactKL(*[np.zeros(0)] * 5)


@dataclass
class _Round:
    """What one update showed until its advantages were known."""

    number: int
    step: int
    """``global_step`` before the update."""
    queries_BP: torch.Tensor
    sequences_BL: torch.Tensor
    scored_BT: torch.Tensor
    """Responses as the reward model reads them: padding after the stop token."""
    trained_BT: torch.Tensor
    """True where TRL's loss counts a token: before the first padding token."""
    own_BT: torch.Tensor
    """The same and the stop token, which TRL leaves out where it is the padding token."""
    stopped_B: torch.Tensor
    entropies_BT: torch.Tensor | None = None
    logps_BT: torch.Tensor | None = None
    comparison: _Comparison | None = None
    scores: list[torch.Tensor] = field(default_factory=list)
    scored: int = 0
    advantages_BT: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.queries_BP)

    @property
    def responses_BT(self) -> torch.Tensor:
        return self.sequences_BL[:, self.queries_BP.shape[1] :]

    @classmethod
    def begin(
        cls, number: int, step: int, queries: torch.Tensor, sequences: torch.Tensor, *, stop: int | None, pad: int
    ) -> _Round:
        responses = sequences[:, queries.shape[1] :]
        is_stop = torch.zeros_like(responses, dtype=torch.bool) if stop is None else responses == stop
        stops_before = is_stop.cumsum(1) - is_stop.long()
        scored = torch.where(stops_before > 0, pad, responses)
        trained = (scored == pad).cumsum(1) == 0
        # The first token after those that are trained may be the stop token itself, where it doubles as padding.
        first_after = ~trained & ((~trained).cumsum(1) == 1)
        own = trained | (first_after & is_stop & (stops_before == 0))
        stopped = (own & is_stop).any(1)
        return cls(number, step, queries, sequences, scored, trained, own, stopped)

    def measure(self, logits_BTV: torch.Tensor) -> None:
        """Entropy and log-probability of each own token, in nats, of the distribution that it was drawn from."""
        entropies = torch.zeros(self.own_BT.shape, dtype=torch.float32, device=logits_BTV.device)
        logps = torch.zeros_like(entropies)
        for place_n2 in self.own_BT.nonzero().split(CHUNK_TOKENS):
            row_n, at_n = place_n2.unbind(1)
            logp_nV = logits_BTV[row_n, at_n].float().log_softmax(-1)
            p_nV = logp_nV.exp()
            # A token that sampling had ruled out has log-probability -inf and adds nothing.
            entropies[row_n, at_n] = -torch.where(p_nV > 0, p_nV * logp_nV, torch.zeros_like(p_nV)).sum(-1)
            logps[row_n, at_n] = logp_nV.gather(1, self.responses_BT[row_n, at_n, None])[:, 0]
        self.entropies_BT, self.logps_BT = entropies, logps

    def take_scores(self, sequences_bL: torch.Tensor, scores_b: torch.Tensor) -> None:
        """Scores of rows that continue those taken before."""
        end = self.scored + len(sequences_bL)
        expected_bL = torch.cat([self.queries_BP[self.scored : end], self.scored_BT[self.scored : end]], 1)
        if torch.equal(sequences_bL, expected_bL):
            self.scored = end
            self.scores.append(scores_b.detach().clone())

    def mean_advantages(self) -> list[float | None] | None:
        """Mean whitened advantage per row over the tokens that TRL trains; ``None`` where it trains none."""
        if self.advantages_BT is None:
            return None
        counts_B = self.trained_BT.sum(1)
        means_B = self.advantages_BT.double().sum(1) / counts_B
        return _or_none(means_B)


# -- the replaced functions --------------------------------------------------------------------------------------------


@dataclass
class _Patch:
    """The functions of one module, replaced while a watched trainer trains with them."""

    watching: list[TrlPPOCapture]
    replaced: dict[str, tuple[Any, Any]]
    """Name to the original and what stands in for it."""


_PATCHES: dict[str, _Patch] = {}
_LOCK = threading.Lock()


def _watch(module: Any, capture: TrlPPOCapture) -> None:
    with _LOCK:
        patch = _PATCHES.get(module.__name__)
        if patch is None:
            patch = _PATCHES[module.__name__] = _Patch([], {})
            for name in PLACE_OF:
                original = getattr(module, name)
                stand_in = _stand_in(name, original, patch.watching)
                patch.replaced[name] = (original, stand_in)
                setattr(module, name, stand_in)
        patch.watching.append(capture)


def _unwatch(module: Any, capture: TrlPPOCapture) -> None:
    with _LOCK:
        patch = _PATCHES.get(module.__name__)
        if patch is None or capture not in patch.watching:
            return
        patch.watching.remove(capture)
        if patch.watching:
            return
        del _PATCHES[module.__name__]
        for name, (original, stand_in) in patch.replaced.items():
            # What somebody else has put over ours since stays: below it ours only passes calls on.
            if getattr(module, name) is stand_in:
                setattr(module, name, original)


def _stand_in(name: str, original: Callable[..., Any], watching: list[TrlPPOCapture]) -> Callable[..., Any]:
    @functools.wraps(original)
    def observed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        for capture in tuple(watching):
            capture.saw(name, args, kwargs, result)
        return result

    observed.rlmon_wraps = original  # type: ignore[attr-defined]
    return observed


# -- pieces ------------------------------------------------------------------------------------------------------------


def _home(trainer: Any) -> type:
    """TRL's class among those of ``trainer``: its module holds the functions that ``train()`` calls."""
    return next(kind for kind in type(trainer).__mro__ if capabilities.is_trl_ppo_class(kind))


def _trains_now(trainer: Any) -> bool:
    codes = {vars(kind)["train"].__code__ for kind in type(trainer).__mro__ if "train" in vars(kind)}
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code in codes and frame.f_locals.get("self") is trainer:
            return True
        frame = frame.f_back
    return False


def _reference_refusal(trainer: Any, policy: Any) -> str | None:
    """Why TRL's reference would not be the policy as it starts."""
    if trainer.ref_adapter_name:
        return "ref_adapter_name makes another adapter the reference"
    tuners = _tuner_layers(policy)
    if tuners:
        refusal = _adapter_refusal(policy, tuners, True)
        if refusal is not None or trainer.ref_model is None:
            return refusal
        policy = policy.get_base_model()
    own = {name.replace("base_layer.", ""): tensor for name, tensor in policy.named_parameters()}
    for name, tensor in trainer.ref_model.named_parameters():
        mine = own.get(name)
        if mine is None or mine.shape != tensor.shape:
            return f"ref_model is another model than the policy ({name})"
        if mine.numel() == 0:
            return "weights are sharded, so that ref_model cannot be compared with the policy"
        # A few values of every tensor: equal for equal models, cheap at any size.
        if not torch.equal(*(values.detach().reshape(-1)[:16].float().cpu() for values in (mine, tensor))):
            return f"ref_model is not the policy as it starts (weights differ: {name})"
    return None


def _or_none(values_B: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values_B.tolist()]
