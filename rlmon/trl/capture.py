"""Reads what TRL's GRPO and RLOO trainers compute anyway, without changing it.

The trainer's bound methods are wrapped on the *instance*: nothing in TRL is patched, and ``detach`` restores the
trainer by deleting instance attributes. Every wrapper passes its arguments on as they came and calls the original
exactly once, outside its own try: the user's exceptions pass through untouched, and a failure of ours is a counted
fault while the value that TRL computed is returned.

TRL shuffles rows after scoring, so each row's identity travels with the tensors: a ``(B, 2)`` tensor of
(round, sampled row) is added to the generated batch, which TRL shuffles and splits in unison with the rest. The row is
-1 where the batch holds a completion that was not sampled in this round (``rlmon.trl.sampling``).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from rlmon.config import RLMonConfig
from rlmon.metrics.prompts import prompt_identities, render_completion, render_prompt
from rlmon.monitor.observed import ROUNDS_REMEMBERED
from rlmon.records import RolloutBatch, Split
from rlmon.trl import mirror
from rlmon.trl.base import BaseModel
from rlmon.trl.binding import bound_arguments
from rlmon.trl.ppo.config import PPO_SETTINGS
from rlmon.trl.prompts import SourceMap
from rlmon.trl.sampling import Drawn, Finder, Generated, Row, Sampling, Scored, find_rows, global_rows
from rlmon.trl.unmask import LOGPS, CannotReadError, PolicyCall, masked_rows, unmask

if TYPE_CHECKING:
    from rlmon.monitor import Monitor
    from rlmon.trl.helm import Helm

ROWS_KEY = "rlmon_rows"
CRITIC = "_compute_value_loss"
"""Wrapped too where the trainer has a critic."""

SCORING = ("inputs", "prompts", "completions", "completion_ids_list")
"""TRL's names of the parameters."""


@dataclass
class _Loss:
    """What one call of the loss showed."""

    inputs: Any
    call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = None
    """The policy's ``_get_per_token_logps_and_entropies`` and its arguments."""
    result: Any = None
    """What it returned: a tuple of two before TRL 1.8, of three since."""
    tapped: list[torch.Tensor] = field(default_factory=list)
    """Last hidden states of the policy, where a base measurement asked for them."""
    inner: bool = False
    """Another loss was computed within this one, and is what counts."""


class LossView:
    """What the losses of one step have shown of the policy's tokens."""

    def __init__(self) -> None:
        self._method: str | None = None
        self._logps = self._entropies = False

    def saw(self, method: str, *, logps: bool, entropies: bool) -> None:
        """Take note of one loss, computed by ``method``."""
        self._method = method
        self._logps = self._logps or logps
        self._entropies = self._entropies or entropies

    def unseen(self, trainer: type) -> dict[str, str]:
        """Signals that this trainer's loss does not show, with the reason."""
        if self._entropies:
            return {}
        if self._method is None:
            loss = f"{trainer.__name__} computes its loss without TRL's compute_loss and"
        else:
            owner = next(kind for kind in trainer.__mro__ if self._method in vars(kind))
            loss = f"{owner.__name__}.{self._method} computes a loss of its own and"
        if self._logps:
            return {"entropy": f"{loss} asks for log-probabilities without entropies (compute_entropy=True gives them)"}
        reason = f"{loss} does not call _get_per_token_logps_and_entropies, where rlmon reads the policy's tokens"
        return {"entropy": reason, "kl": reason}


class Capture:
    """The hooks on one trainer; holds no strong reference to it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = weakref.ref(trainer)
        self.monitor: Monitor | None = None
        self.base: BaseModel | None = None
        self.sources = SourceMap(None, frozenset(), "all")
        self._replaced: dict[str, Any] = {}
        """Wrapped methods, with what the instance had in their place before."""
        self._sampling: Sampling | None = None
        self._own: dict[Split, dict[int, list[NDArray[np.bool_] | None]]] = {"train": {}, "eval": {}}
        """Of the newest rounds, which tokens of each sampled row are the model's own; ``None`` where it is padded in
        another way than TRL does."""
        self._loss: _Loss | None = None
        self._unidentified: _Unidentified | None = None
        self._shown = LossView()
        self._blocked: str | None = None
        """Why no forward of our own can be run in the middle of training."""
        self._blocked_said = False
        self._base_due = False
        self.helm: Helm | None = None
        """What the rules turn in this trainer; ``None`` where it is only watched."""

    @property
    def trainer(self) -> Any:
        trainer = self._trainer()
        if trainer is None:
            raise RuntimeError("the monitored trainer is gone")
        return trainer

    def install(self) -> None:
        trainer = self.trainer
        self._blocked = _forward_blocker(trainer)
        for name, around in (
            ("_generate_and_score_completions", self._round),
            ("_generate", self._sampled),
            ("_calculate_rewards", self._rewards),
            ("_get_per_token_logps_and_entropies", self._logps),
            ("_compute_loss", self._compute_loss),
            ("compute_loss", self._whole_loss),
            (CRITIC, self._compute_value_loss),
        ):
            if callable(getattr(trainer, name, None)):
                self._replaced[name] = vars(trainer).get(name)
                setattr(trainer, name, self._wrap(name, around))

    def uninstall(self) -> None:
        trainer = self._trainer()
        for name, before in self._replaced.items():
            if trainer is not None:
                trainer.__dict__.pop(name, None)
                if before is not None:
                    setattr(trainer, name, before)
        self._replaced.clear()

    def _wrap(self, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        original = getattr(self.trainer, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return around(original, args, kwargs)

        wrapper.__name__ = wrapper.__qualname__ = name
        wrapper.__doc__ = original.__doc__
        wrapper.rlmon_wraps = original  # type: ignore[attr-defined]
        return wrapper

    # -- what differs from other loops -----------------------------------------------------------------------------

    @property
    def critic(self) -> bool:
        """Whether the trainer has a critic, whose values are seen here."""
        return hasattr(self.trainer, CRITIC)

    @property
    def group_size(self) -> int:
        size: int = self.trainer.num_generations
        return size

    @property
    def recorded_settings(self) -> tuple[str, ...]:
        """Settings of the trainer for the run's header, beside those that all of them have."""
        return PPO_SETTINGS if self.critic else ()

    def choose_base(self, config: RLMonConfig) -> BaseModel:
        return BaseModel.choose(self.trainer, config, initial_weights=self.trainer.state.global_step == 0)

    def build_sources(self, config: RLMonConfig) -> SourceMap:
        args = self.trainer.args
        prompts = (args.generation_batch_size or 1) // max(1, args.num_generations)
        return SourceMap.build(getattr(self.trainer, "train_dataset", None), config.rlmon_source_column, prompts)

    def _learn_sources(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """From the first training round of all ranks; each prompt once, wherever its group lies."""
        first = self.trainer.accelerator.process_index * len(inputs)
        rows = [row for i, row in enumerate(inputs) if (first + i) % self.group_size == 0]
        self.sources.learn(rows, gather_object)

    def step_ends(self) -> None:
        """Tell the monitor what the step's losses could not show; the first time, for people and for the log."""
        monitor, shown = self.monitor, self._shown
        self._shown = LossView()
        if monitor is not None:
            with monitor.guard("capture.tokens"):
                unseen = shown.unseen(type(self.trainer))
                if self.base is None or not self.base.active:  # there is no KL for another reason
                    unseen.pop("kl", None)
                monitor.cannot_see(unseen)

    def mirror(self, values: Mapping[str, float]) -> None:
        """Put these among the trainer's own metrics."""
        mirror.add(self.trainer._metrics["train"], values)

    # -- generation ------------------------------------------------------------------------------------------------

    def _round(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        monitor, helm = self.monitor, self.helm
        if monitor is None or self._sampling is not None:  # within a round: one that samples in parts
            return original(*args, **kwargs)
        inputs: Sequence[Mapping[str, Any]] = ()
        with monitor.guard("capture.rollouts"):
            inputs = given = bound_arguments(original, args, kwargs, ("inputs",))["inputs"]
            if self.sources.learning and self.split() == "train":
                with monitor.guard("capture.rollouts"):
                    self._learn_sources(inputs)
            if helm is not None:
                inputs = helm.draws(monitor, inputs)
            if inputs is not given:
                args = tuple(inputs if value is given else value for value in args)
                kwargs = {name: inputs if value is given else value for name, value in kwargs.items()}
        sampling = self._sampling = Sampling()
        try:
            output = original(*args, **kwargs)
        finally:
            self._sampling = None
        trained = None
        with monitor.guard("capture.rollouts"):
            trained = self._observe_rollouts(monitor, inputs, output, sampling)
        if helm is not None:
            helm.rollouts(monitor, trained, output, rows=len(inputs))
        return output

    def _sampled(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = original(*args, **kwargs)
        if self.monitor is not None and self._sampling is not None:
            with self.monitor.guard("capture.rollouts"):
                prompts = bound_arguments(original, args, kwargs, ("prompts",))["prompts"]
                self._sampling.generated.append(Generated.of(prompts, result))
        return result

    def _rewards(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rewards_NF = original(*args, **kwargs)
        if self.monitor is not None and self._sampling is not None:
            with self.monitor.guard("capture.rollouts"):
                given = bound_arguments(original, args, kwargs, SCORING)
                inputs, prompts, completions, ids = (given[name] for name in SCORING)
                call = Scored(inputs, prompts, completions, ids, rewards_NF)
                self.monitor.expect_rows(self._sampling.add_scored(call))
        return rewards_NF

    def split(self) -> Split:
        return "train" if self.trainer.model.training else "eval"

    def _observe_rollouts(
        self, monitor: Monitor, inputs: Sequence[Mapping[str, Any]], output: Any, sampling: Sampling
    ) -> RolloutBatch | None:
        """Hand over the rows of a round; those that are trained on, in the order of ``output``, where that is known of
        each of them."""
        split = self.split()
        number = monitor.next_round(split)
        identity_R2 = _add_identity(output, number)
        calls = sampling.calls(inputs)
        if not calls:
            raise RuntimeError("TRL returned a generation in which nothing was sampled or scored")
        if not sampling.scored:
            monitor.expect_rows(sum(map(len, calls)))
        rows = [row for call in calls for row in sampling.rows(call)]
        drawn = None
        if identity_R2 is None:
            monitor.fault("capture.rollouts", "the generated batch has no rows that an identity could travel with")
        else:
            with monitor.guard("capture.rollouts"):
                drawn = find_rows(output, rows, self.finder(rows))
                identity_R2[:, 1] = torch.tensor(drawn.row_R, dtype=torch.int64)
        batch = self._batch(monitor, split, number, calls, rows, drawn, output)
        self._remember_own(split, number, rows, drawn)
        monitor.observe(batch)
        return None if drawn is None else self._as_trained(batch, drawn)

    def finder(self, rows: Sequence[Row]) -> Finder:
        return Finder(rows, self.trainer._tokenizer.pad_token_id)

    def _remember_own(self, split: Split, number: int, rows: Sequence[Row], drawn: Drawn | None) -> None:
        own: list[NDArray[np.bool_] | None] = [None] * len(rows)
        if drawn is not None:
            for row, placed in zip(drawn.row_R, drawn.placed_R, strict=True):
                if placed:
                    own[row] = rows[row].own_T
        remembered = self._own[split]
        remembered[number] = own
        while len(remembered) > ROUNDS_REMEMBERED:
            remembered.pop(next(iter(remembered)))

    def _as_trained(self, batch: RolloutBatch, drawn: Drawn) -> RolloutBatch | None:
        """The rows of the generated batch as the rules see them: groups of ``group_size``, rank by rank."""
        count = len(drawn.row_R)
        if drawn.row_R == list(range(len(batch))):
            return batch
        if min(drawn.row_R, default=-1) < 0:
            return None
        first = self.trainer.accelerator.process_index * count
        taken = batch.take(drawn.row_R, global_row=range(first, first + count))
        group: dict[int, str] = {}
        for row, prompt in zip(taken.global_row, taken.prompt_id, strict=True):
            if group.setdefault(row // batch.group_size, prompt) != prompt:
                return None
        return taken

    def _batch(
        self,
        monitor: Monitor,
        split: Split,
        number: int,
        calls: Sequence[Scored],
        rows: Sequence[Row],
        drawn: Drawn | None,
        output: Mapping[str, Any],
    ) -> RolloutBatch:
        trainer = self.trainer
        world_size, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        group_size = max(1, trainer.num_generations if split == "train" else trainer.num_generations_eval)
        prompts = [prompt for call in calls for prompt in call.prompts]
        prompt_id = prompt_identities(prompts)
        sizes, at = [len(call) for call in calls], 0
        uniform = []
        for call in calls:
            # An environment may have added another observation to each copy of a prompt.
            drawn_from = (prompt_id[at : at + len(call)], [row.get("prompt") for row in call.inputs])
            uniform.append(
                world_size > 1
                or _in_groups(drawn_from[0], group_size)
                or _in_groups(prompt_identities(drawn_from[1]), group_size)
            )
            at += len(call)
        own, every, end = global_rows(sizes, uniform, rank=rank, world_size=world_size, group_size=group_size)
        names = unique_names(trainer.reward_func_names)
        weights_F = trainer.reward_weights.to("cpu", torch.float64)
        round_NF = torch.full((end, len(names)), torch.nan, dtype=torch.float64)
        # A subclass may score only this rank's rows: then no rank has the rewards of the round.
        of_all = world_size == 1 or all(
            call.rewards_NF is not None and len(call.rewards_NF) == len(numbers)
            for call, numbers in zip(calls, every, strict=True)
        )
        for call, here, numbers in zip(calls, own, every, strict=True):
            if call.rewards_NF is None:
                continue
            rewards_NF = call.rewards_NF.detach().to("cpu", torch.float64)
            if rewards_NF.shape not in ((len(numbers), len(names)), (len(here), len(names))):
                monitor.fault(
                    "capture.rollouts",
                    f"_calculate_rewards returned shape {tuple(rewards_NF.shape)} for {len(numbers)} completions and "
                    f"{len(names)} reward functions: these rows are logged without rewards",
                )
                continue
            round_NF[numbers if len(rewards_NF) == len(numbers) else here] = rewards_NF
        global_row = [row for numbers in own for row in numbers]
        local_BF = round_NF[global_row]
        totals_N = _weighted(round_NF, weights_F)
        trained = [True] * len(rows) if drawn is None else drawn.trained(len(rows))
        ends = terminal_ids(trainer)
        step = trainer.state.global_step
        return RolloutBatch(
            round=number,
            split=split,
            step=step + 1 if split == "train" else step,
            group_size=group_size,
            global_row=global_row,
            prompt_id=prompt_id,
            source=[self.sources.source_of(row) for call in calls for row in call.inputs],
            prompts=[render_prompt(prompt) for prompt in prompts],
            completions=self._texts([completion for call in calls for completion in call.completions], rows),
            prompt_ids=[row.prompt_ids for row in rows],
            # Arrays, not lists of integers: at thousands of tokens a row, boxing every id would cost more than the
            # metrics.
            completion_ids=[row.ids[row.own_T] for row in rows],
            rewards={name: _or_none(local_BF[:, i]) for i, name in enumerate(names)},
            reward=[totals_N[row] for row in global_row],
            round_reward=totals_N if of_all else None,
            round_rewards={name: _or_none(round_NF[:, i]) for i, name in enumerate(names)} if of_all else None,
            reward_weights=dict(zip(names, weights_F.tolist(), strict=True)),
            advantages=_advantages(output, drawn, len(rows)),
            truncated=[not len(row.ids) or int(row.ids[-1]) not in ends for row in rows],
            policy_version=[step] * len(rows),
            trained=trained,
        )

    def _texts(self, completions: Sequence[Any], rows: Sequence[Row]) -> list[str]:
        """What the model itself wrote: where an environment's text lies between its tokens, these decoded alone."""
        texts = [render_completion(completion) for completion in completions]
        mixed = [
            i
            for i, (completion, row) in enumerate(zip(completions, rows, strict=True))
            if not row.own_T.all() and (isinstance(completion, str) or len(completion) == 1)
        ]
        if mixed:
            own = [rows[i].ids[rows[i].own_T].tolist() for i in mixed]
            decoded = self.trainer._tokenizer.batch_decode(own, skip_special_tokens=True)
            for i, text in zip(mixed, decoded, strict=True):
                texts[i] = text
        return texts

    # -- loss ------------------------------------------------------------------------------------------------------

    def _whole_loss(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Around ``compute_loss``: what counts where a trainer computes its loss there, without ``_compute_loss``."""
        monitor = self.monitor
        if monitor is None or self._loss is not None:
            return original(*args, **kwargs)
        with self._listening(monitor, original, args, kwargs) as loss:
            value = original(*args, **kwargs)
        if not loss.inner:
            with monitor.guard("capture.tokens"):
                self._observe_tokens(monitor, loss, value[0] if isinstance(value, tuple) else value, "compute_loss")
        return value

    def _compute_loss(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        monitor = self.monitor
        if monitor is None or (self._loss is not None and self._loss.inner):
            return original(*args, **kwargs)
        if self._loss is not None:
            self._loss.inner = True
        with contextlib.ExitStack() as stack:
            inputs = self._inputs(monitor, original, args, kwargs)
            if self.helm is not None:
                # Before anything listens: the reference of an adapter is a forward of the policy's own modules.
                stack.enter_context(self.helm.loss(monitor, inputs))
            loss = stack.enter_context(self._listening(monitor, original, args, kwargs))
            loss.inner = True
            value = original(*args, **kwargs)
        with monitor.guard("capture.tokens"):
            self._observe_tokens(monitor, loss, value, "_compute_loss")
        if self.helm is not None:
            value = self.helm.add_to_loss(monitor, value, inputs, loss.result)
        return value

    def _inputs(
        self, monitor: Monitor, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        inputs: Any = {}
        with monitor.guard("capture.tokens"):
            inputs = bound_arguments(original, args, kwargs, ("model", "inputs"))["inputs"]
        return inputs

    @contextlib.contextmanager
    def _listening(
        self, monitor: Monitor, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[_Loss]:
        """While the loss is computed, the policy's calls are taken note of; with them, where due, its hidden states."""
        before, loss = self._loss, _Loss({})
        with contextlib.ExitStack() as stack:
            loss.inputs = self._inputs(monitor, original, args, kwargs)
            if before is None and self._base_due and self.base is not None and self.split() == "train":
                with monitor.guard("base.tap"):
                    stack.enter_context(self.base.tap_policy(loss.tapped))
            elif before is not None:
                loss.tapped = before.tapped
            self._loss = loss
            stack.callback(setattr, self, "_loss", before)
            yield loss

    def _logps(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = original(*args, **kwargs)
        monitor, loss = self.monitor, self._loss
        if monitor is not None and loss is not None and not _has_entropies(loss.result):
            with monitor.guard("capture.tokens"):
                self._take_policy_call(loss, original, args, kwargs, result)
        return result

    def _take_policy_call(
        self, loss: _Loss, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Remember the policy's call: the first of the model in training, better one with entropies than one without.

        A loss may ask for logprobs of a reference as well, which is another model or the same without gradients.
        """
        model = bound_arguments(original, args, kwargs, LOGPS)["model"]
        called = self.trainer.accelerator.unwrap_model(model)
        ours = getattr(called, "_orig_mod", called) is self._policy  # torch.compile wraps the module that it is given
        if not ours or (self.split() == "train" and not torch.is_grad_enabled()):
            return
        if loss.result is None or _has_entropies(result):
            loss.call, loss.result = (original, args, kwargs), result

    def _compute_value_loss(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = original(*args, **kwargs)
        monitor = self.monitor
        if monitor is not None:
            with monitor.guard("metrics.values"):
                inputs = bound_arguments(original, args, kwargs, ("values_BT", "inputs"))["inputs"]
                monitor.observe_values(
                    split=self.split(),
                    values_BT=inputs["values"],
                    returns_BT=inputs["rewards_to_go"],
                    advantages_BT=inputs["advantages"],
                    mask_BT=inputs["value_mask"],
                    loss=result[0].detach(),
                    clip_ratio=result[1].detach(),
                )
        return result

    def _observe_tokens(self, monitor: Monitor, loss: _Loss, value: torch.Tensor, method: str) -> None:
        split, inputs = self.split(), loss.inputs
        self._shown.saw(method, logps=loss.result is not None, entropies=_has_entropies(loss.result))
        if loss.call is None:
            return
        logps_BT = loss.result[0].detach()
        entropies_BT = loss.result[1].detach() if _has_entropies(loss.result) else None
        call = PolicyCall(*loss.call, logps_BT, entropies_BT, loss.tapped)
        rows_B2 = self._rows(monitor, inputs, len(logps_BT))
        mask_BT = inputs["completion_mask"]
        if inputs.get("tool_mask") is not None:
            mask_BT = mask_BT * inputs["tool_mask"]
        attention_BL = None
        masked = masked_rows([self._own_tokens(split, *row) for row in rows_B2], mask_BT)
        if masked:
            with monitor.guard("capture.tokens"):
                try:
                    mask_BT, attention_BL = unmask(
                        call, masked, mask_BT, policy=self._policy, base=self.base, blocked=self._blocked
                    )
                except CannotReadError as error:
                    if not self._blocked_said:
                        self._blocked_said = True
                        monitor.note(str(error))
        monitor.observe_tokens(
            split=split,
            rows_B2=rows_B2,
            logps_BT=call.logps_BT,
            entropies_BT=call.entropies_BT,
            mask_BT=mask_BT,
            advantages_B=inputs.get("advantages"),
            loss=value.detach(),
        )
        if self._base_due and split == "train" and self.base is not None:
            self._base_due = False
            with monitor.guard("base.forward"):
                rows = torch.tensor(rows_B2, device=mask_BT.device)
                # What the policy did not sample in this round says nothing of its divergence.
                mask_BT = mask_BT * (rows[:, 1:] >= 0)
                arguments = call.behind_the_model(attention_BL)
                self.base.measure(monitor, arguments, call.tapped, call.logps_BT, rows, mask_BT)

    def _rows(self, monitor: Monitor, inputs: Mapping[str, Any], count: int) -> list[list[int]]:
        """(round, sampled row) of each row of a batch; (-1, -1) where it carries none."""
        rows_B2 = inputs.get(ROWS_KEY)
        if rows_B2 is None and self._unidentified is not None:
            with monitor.guard("capture.rollouts"):
                self._unidentified.complete(self, monitor)
            rows_B2 = self._unidentified.identify(self, inputs)
        if rows_B2 is None or len(rows_B2) != count:
            monitor.fault("capture.tokens", "a training batch carries no row identity")
            return [[-1, -1]] * count
        listed: list[list[int]] = rows_B2.to("cpu").tolist()
        return listed

    def _own_tokens(self, split: Split, number: int, row: int) -> NDArray[np.bool_] | None:
        own = self._own[split].get(number)
        return None if own is None or row < 0 else own[row]

    @property
    def _policy(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    # -- base model ------------------------------------------------------------------------------------------------

    def step_begins(self, global_step: int, every: int) -> None:
        """Decide, from the step number alone and so alike on all ranks, whether this step measures the base."""
        self._base_due = self.base is not None and self.base.active and global_step % every == 0

    def expect_unidentified_round(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take a round whose generation began before the hooks were in place (see ``rlmon.trl.probe``)."""
        if self.sources.learning and self.monitor is not None:
            with self.monitor.guard("capture.rollouts"):
                self._learn_sources(rows)
        self._unidentified = _Unidentified(Scored(rows, prompts, completions, completion_ids, None), self)
        if self.monitor is not None:
            self.monitor.expect_rows(len(completion_ids))


class _Unidentified:
    """The first round of a run that the probe joined while it was being scored.

    Rewards of the other functions and advantages were not known yet; TRL keeps them for its completions table, and
    that table holds exactly this one generation when its first loss is computed.
    """

    def __init__(self, scored: Scored, capture: Capture) -> None:
        self.scored = scored
        self.rows = Sampling().rows(scored)
        self._finder = capture.finder(self.rows)
        self.round: int | None = None

    def complete(self, capture: Capture, monitor: Monitor) -> None:
        if self.round is not None:
            return
        trainer = capture.trainer
        self.round = monitor.next_round("train")
        logs = trainer._logs
        self.scored.rewards_NF = torch.tensor(
            [list(logs["rewards"][name]) for name in trainer.reward_func_names], dtype=torch.float64
        ).T
        count = len(self.rows)
        first = trainer.accelerator.process_index * count
        output = {"advantages": torch.tensor(list(logs["advantages"])[first : first + count], dtype=torch.float64)}
        drawn = Drawn(list(range(count)), [True] * count)
        capture._remember_own("train", self.round, self.rows, drawn)
        monitor.observe(capture._batch(monitor, "train", self.round, [self.scored], self.rows, drawn, output))

    def identify(self, capture: Capture, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        """Rows of a shuffled batch found again by their token ids."""
        if self.round is None:
            return None
        found = find_rows(inputs, self.rows, self._finder).row_R
        if min(found, default=0) < 0:  # all were found once: this is the next pass over them
            self._finder = capture.finder(self.rows)
            found = find_rows(inputs, self.rows, self._finder).row_R
        return torch.tensor([[self.round, row] for row in found])


def terminal_ids(trainer: Any) -> frozenset[int]:
    """Token ids after which TRL counts a completion as finished; TRL 1.15 made a list of the single end."""
    ends = getattr(trainer, "eos_token_ids", None)
    if ends is None:
        ends = [getattr(trainer, "eos_token_id", trainer._tokenizer.eos_token_id)]
    return frozenset(end for end in [*ends, trainer._tokenizer.pad_token_id] if end is not None)


def unique_names(names: Sequence[str]) -> list[str]:
    """Reward function names, numbered where two functions share one."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def _forward_blocker(trainer: Any) -> str | None:
    """Why no forward of our own can be run in the middle of training; ``None`` where it can."""
    distributed = str(getattr(trainer.accelerator, "distributed_type", "NO")).rsplit(".", 1)[-1]
    if distributed in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        return f"under {distributed} a forward of the policy is a collective of its own"
    return "torch_compile would compile another forward" if getattr(trainer.args, "torch_compile", False) else None


def _add_identity(output: Any, number: int) -> torch.Tensor | None:
    """Let the rows of a generated batch carry (round, -1); ``None`` where that would not fit what is there."""
    if not isinstance(output, MutableMapping):
        return None
    sizes = {
        len(output[name])
        for name in ("completion_ids", "completion_mask", "prompt_ids", "prompt_mask", "advantages")
        if isinstance(output.get(name), torch.Tensor) and output[name].dim()
    }
    if len(sizes) != 1 or not isinstance(output.get("completion_ids"), torch.Tensor):
        return None
    identity_R2 = torch.full((sizes.pop(), 2), -1, dtype=torch.int64)
    identity_R2[:, 0] = number
    output[ROWS_KEY] = identity_R2.to(output["completion_ids"].device)
    placed: torch.Tensor = output[ROWS_KEY]
    return placed


def _advantages(output: Any, drawn: Drawn | None, rows: int) -> list[float | None] | None:
    """Of each sampled row that is trained on, its advantage; of token-level ones the mean over its own tokens."""
    if drawn is None or output.get("advantages") is None or len(output["advantages"]) != len(drawn.row_R):
        return None
    advantages = output["advantages"].detach().to("cpu", torch.float64)
    if advantages.dim() > 1:
        mask_RT = output["completion_mask"].to("cpu", torch.float64)
        if output.get("tool_mask") is not None:
            mask_RT = mask_RT * output["tool_mask"].to("cpu", torch.float64)
        advantages = (advantages * mask_RT).sum(1) / mask_RT.sum(1).clamp(min=1)
    column: list[float | None] = [None] * rows
    for row, value in zip(drawn.row_R, _or_none(advantages), strict=True):
        if row >= 0:
            column[row] = value
    return column


def _in_groups(prompt_id: Sequence[str], group_size: int) -> bool:
    """Whether the rows fall into blocks of ``group_size`` completions of one prompt."""
    return all(
        len(set(prompt_id[i : i + group_size])) == 1 and i + group_size <= len(prompt_id)
        for i in range(0, len(prompt_id), group_size)
    )


def _has_entropies(result: Any) -> bool:
    return result is not None and result[1] is not None


def _or_none(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def _weighted(rewards_NF: torch.Tensor, weights_F: torch.Tensor) -> list[float | None]:
    """Weighted sum per row over the functions that scored it; ``None`` where none did."""
    unscored_N = torch.isnan(rewards_NF).all(dim=1)
    totals_N = (rewards_NF * weights_F).nansum(dim=1)
    return [None if bad else total for bad, total in zip(unscored_N.tolist(), totals_N.tolist(), strict=True)]
