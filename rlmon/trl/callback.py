"""``RLMon``: the drop-in callback that ties a TRL trainer to the monitor."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from rlmon.config import RLMonConfig
from rlmon.console import goodbye, hello, say
from rlmon.controller import load_policy
from rlmon.detectors import judged, status
from rlmon.errors import AttachError, ConfigError
from rlmon.extensions import Extensions
from rlmon.interventions.validate import said
from rlmon.monitor import Monitor, Resume
from rlmon.printable import one_line
from rlmon.restored import describe
from rlmon.sinks.posting import webhook_of
from rlmon.trl.actuators import TrainerActuators
from rlmon.trl.around_train import around_evaluation, before_use, go_on_once, on_failure
from rlmon.trl.attaching import in_words, untouched_by_failure
from rlmon.trl.base_sample import NONE_IN_CHECKPOINT, TOO_LATE
from rlmon.trl.capture import Capture
from rlmon.trl.facts import callers, resumed_from
from rlmon.trl.header import about
from rlmon.trl.kinds import kind_of
from rlmon.trl.mirror import around_trackers, headline, tensorboard_sinks
from rlmon.trl.ranks import first_of_any_rank, ranks_of
from rlmon.trl.resuming import restore, save
from rlmon.trl.watched import Watched
from rlmon.trl.wrapping import Original, bound_arguments, wrap


class RLMon(TrainerCallback):
    """Watches a TRL ``GRPOTrainer`` or ``RLOOTrainer`` without changing what it does.

    TRL's own ``PPOTrainer`` (1.8 to 1.12) as well, as far as its loop shows itself (``rlmon.trl.legacy_ppo``).

    ``RLMon(trainer)`` after the trainer is built, or ``callbacks=[RLMon()]`` when building it. Settings are an
    ``RLMonConfig``, keywords (``policy="protect"`` or ``rlmon_policy="protect"``), or both, where keywords win over
    the config's fields. ``metrics``, ``detectors``, ``actions`` and ``sinks`` are what you add to what is built in
    (docs/extending.md). Raises ``AttachError`` or ``ConfigError`` before the first step where watching would
    half-work; nothing is raised into the loop after that.
    """

    def __init__(
        self,
        trainer: Any = None,
        config: RLMonConfig | None = None,
        *,
        metrics: Sequence[Any] = (),
        detectors: Sequence[Any] = (),
        actions: Sequence[Any] = (),
        sinks: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        if isinstance(trainer, RLMonConfig):
            if config is not None:
                raise ConfigError("RLMon got two configs. Give one: RLMon(trainer, config) or RLMon(config).")
            trainer, config = None, trainer
        if config is not None and not isinstance(config, RLMonConfig):
            raise ConfigError(
                f"RLMon takes an RLMonConfig as its second argument, got {type(config).__name__}. Settings can be "
                'given by keyword as well: RLMon(trainer, policy="protect").'
            )
        self.config = (config if config is not None else RLMonConfig()).with_settings(settings)
        self.extensions = Extensions(metrics=metrics, detectors=detectors, actions=actions, sinks=sinks)
        self.monitor: Monitor | None = None
        """The monitor of the current or last ``train()`` call; before the first, of an ``evaluate()``."""
        self.roll_back_to: Path | None = None
        """Where training is to go on from, once, after a rule rolled the run back; ``None`` otherwise."""
        self._capture: Watched | None = None
        self._actuators: TrainerActuators | None = None
        """What the rules turn; ``None`` where the trainer is only watched."""
        self._checkpoint: Path | None = None
        self._open = False
        self._continues = False
        """The log was begun by an evaluation before ``train()``, which goes on with it."""
        self._undo: list[Callable[[], None]] = []
        """What takes wrappers off again, the last one first."""
        self._last: Callable[[], Any] = lambda: None
        """The trainer that is, or was last, or is going to be watched; held weakly."""
        self._give_back_trackers: Callable[[], None] = lambda: None
        if trainer is not None:
            self.attach(trainer)

    @property
    def attached(self) -> bool:
        return self._capture is not None

    @property
    def log_dir(self) -> Path:
        """The run directory."""
        if self.config.rlmon_dir is not None:
            return Path(self.config.rlmon_dir)
        return Path(self._trainer.args.output_dir) / "rlmon"

    @property
    def _trainer(self) -> Any:
        if self._capture is None:
            raise AttachError("RLMon is not attached to a trainer yet: use RLMon(trainer).")
        return self._capture.trainer

    # -- attaching -------------------------------------------------------------------------------------------------

    def attach(self, trainer: Any) -> None:
        """Install the hooks on ``trainer``; refuse loudly where they would half-work."""
        if self._capture is not None:
            raise AttachError("This RLMon already watches a trainer. Make a new one: RLMon(trainer).")
        webhook_of(os.environ)  # one that cannot be is refused before training, like any setting
        self._unwrap()  # what waits for the first use
        with in_words("tell whether this trainer can be watched", "Use TRL's GRPOTrainer or RLOOTrainer"):
            kind = kind_of(trainer, self.config)
        with untouched_by_failure(trainer):
            self._capture = self._attached(kind(trainer, self.config))
        if self._last() is not trainer:
            self.monitor, self._continues = None, False  # of another trainer, whose log is its own
            self._last = weakref.ref(trainer)
        self._say(hello(self.log_dir))
        for note in () if self._actuators is None else self._actuators.notes:
            self._say(said(note))

    def _attached(self, capture: Watched) -> Watched:
        trainer, self._actuators = capture.trainer, None
        with in_words("find the initial base model", "Set rlmon_base_kl: off"):
            base = capture.base = capture.choose_base()
        with in_words("read the sources of the prompts", "Set rlmon_source_column to a column of the dataset"):
            capture.sources = capture.build_sources()
        if self.config.rlmon_policy is not None:
            with in_words("make ready for the rules", "Leave rlmon_policy out"):
                policy = load_policy(self.config.rlmon_policy, self.extensions)
                self._actuators = capture.actuators = TrainerActuators(
                    trainer, base, policy, capture.sources, self.config, self.extensions
                )
        with in_words("put its hooks in place", "Use TRL's own GRPOTrainer or RLOOTrainer"):
            capture.install()
            self._undo = [
                wrap(trainer, "_load_optimizer_and_scheduler", self._load_optimizer_and_scheduler),
                on_failure(trainer, functools.partial(self._close, interrupted=True)),
            ]
            if capture.evaluates:
                self._undo.append(around_evaluation(trainer, self._evaluation_begins, self._evaluation_ends))
            if self._actuators is not None and self._actuators.may_roll_back:
                self._undo.append(go_on_once(trainer, self))
            if self not in trainer.callback_handler.callbacks:
                trainer.add_callback(self)
        return capture

    def _load_optimizer_and_scheduler(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with contextlib.suppress(TypeError):  # a call that cannot be bound is refused by the original
            checkpoint = bound_arguments(original, args, kwargs, ("checkpoint",)).get("checkpoint")
            if checkpoint is not None:
                self._checkpoint = Path(checkpoint)
        return original(*args, **kwargs)

    def _say(self, text: str) -> None:
        if self.config.rlmon_console and self._trainer.accelerator.is_main_process:
            say(text)

    def detach(self) -> None:
        """Take every hook off the trainer again."""
        if self._capture is None:
            self._unwrap()
            trainer = self._last()
            if trainer is not None and self in trainer.callback_handler.callbacks:
                trainer.remove_callback(self)
            return
        trainer = self._capture.trainer
        self._close()
        self._unwrap()
        self._capture.uninstall()
        trainer.remove_callback(self)
        self._capture = self._actuators = None

    def _unwrap(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _find_trainer(self) -> Any:
        """The trainer whose callback list holds this object, from the frames that called us."""
        for frame in callers():
            candidate = frame.f_locals.get("self")
            if isinstance(candidate, Trainer):
                handler = candidate.__dict__.get("callback_handler")
                if handler is not None and any(callback is self for callback in handler.callbacks):
                    return candidate
        return None

    def on_init_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._capture is None:
            trainer = self._find_trainer()
            if trainer is not None and self.config.rlmon_policy is not None:
                # Rules look at what TRL builds after this.
                self._last, self._undo = weakref.ref(trainer), [before_use(trainer, self.attach)]
            elif trainer is not None:
                self.attach(trainer)

    # -- one train() call ------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._capture is None:
            trainer = self._find_trainer()
            if trainer is None:
                raise AttachError(
                    "RLMon could not find the trainer that it was given to. Attach it by hand: RLMon(trainer)."
                )
            self.attach(trainer)
        self._begin(state)
        if self.config.rlmon_base_sample and self._capture is not None:
            assert self.monitor is not None
            if state.global_step == 0:
                self._capture.sample_base(self.monitor)
            elif not self.monitor.detector_state.base_completions:
                self.monitor.journal.remark(NONE_IN_CHECKPOINT)

    def join_mid_round(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """Begin while a first round is being scored (``rlmon.trl.probe``), and take that round as it is."""
        assert isinstance(self._capture, Capture)
        self._begin(self._trainer.state)
        if self.config.rlmon_base_sample and self.monitor is not None and self._trainer.state.global_step == 0:
            self.monitor.journal.remark(TOO_LATE)
        self._capture.join_mid_round(prompts, completions, completion_ids, rows)

    def _begin(self, state: TrainerState) -> None:
        assert self._capture is not None
        self.roll_back_to = None
        trainer, capture, actuators, base = self._trainer, self._capture, self._actuators, self._capture.base
        assert base is not None
        if self._checkpoint is None:  # it was loaded before the hook that sees it was there
            self._checkpoint = resumed_from(trainer)
        saved, restored = restore(self._checkpoint, capture, actuators, resumed=state.global_step > 0)
        monitor = self._make_monitor(
            state.max_steps,
            Resume(
                step=state.global_step if state.global_step > 0 else None,
                state=saved,
                restored=restored,
                continues=self._continues,
            ),
            policy=None if actuators is None else actuators.policy,
            actuators=actuators,
        )
        self._continues = False
        if actuators is not None:
            with monitor.guard("interventions"):
                actuators.begin(monitor)
        monitor.journal.no_base = base.unmeasured(state.global_step, self.config.rlmon_base_kl_every)
        trackers: Sequence[Any] = ()
        with monitor.guard("mirror"):
            trackers = tensorboard_sinks(trainer, self.log_dir) if self.config.rlmon_tensorboard else ()
        monitor.open_sinks(trackers)
        if trainer.accelerator.is_main_process:
            with monitor.guard("mirror"):
                self._give_back_trackers = around_trackers(trainer, monitor)
        self.monitor = capture.monitor = monitor
        self._open = True

    def _make_monitor(self, steps: int, resume: Resume, **rules: Any) -> Monitor:
        """A monitor with its log open, for a ``train()`` call or an evaluation outside of one."""
        assert self._capture is not None
        trainer, capture = self._trainer, self._capture
        monitor = Monitor(
            self.config,
            directory=self.log_dir,
            group_size=capture.group_size,
            about=about(
                trainer,
                recorded=capture.recorded_settings,
                critic=capture.critic,
                total_steps=steps if steps > 0 else None,
                capabilities=[
                    *capture.plan(),
                    capture.sources.capability,
                    *(() if self._actuators is None else self._actuators.capabilities),
                ],
            ),
            ranks=ranks_of(trainer),
            resume=resume,
            extensions=self.extensions,
            **rules,
        )
        with monitor.guard("capture.vocabulary"):
            monitor.use_vocabulary(_vocabulary(trainer.processing_class))
        return monitor

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._open and self._capture is not None:
            self._capture.step_begins(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        monitor, capture = self.monitor, self._capture
        if not self._open or monitor is None or capture is None:
            return
        base = capture.base
        if base is not None:
            monitor.journal.no_base = base.unmeasured(state.global_step - 1, self.config.rlmon_base_kl_every)
        capture.step_ends()
        record = monitor.end_step(state.global_step)
        if self._actuators is not None:
            with monitor.guard("interventions"):
                self.roll_back_to = self._actuators.act_on_loop(monitor, state, control)
        if record is None or not self.config.rlmon_mirror:
            return
        with monitor.guard("mirror"):
            capture.mirror(headline(record))

    def _evaluation_begins(self) -> bool:
        """Whether a log was opened for an evaluation outside of ``train()``: that of the last ``train()``, or one that
        the next goes on with. Never raises; the same on all ranks."""
        if self._open or self._capture is None:
            return False
        if self.monitor is None:
            made: Monitor | None = None
            failure: str | None = None
            try:
                made = self._make_monitor(self._trainer.state.max_steps, Resume(continues=True))
            except Exception as error:
                failure = one_line(describe(error))
            # What an evaluation showed is added up over the ranks: all of them log it, or none does.
            failure = first_of_any_rank(failure, self._trainer)
            if failure is not None:
                if made is not None:
                    made.close()
                self._say(f"this evaluation is not logged: {failure}")
                return False
            assert made is not None
            self.monitor, self._continues = made, made.writer.header.attempt_kind == "fresh"
        self._capture.monitor = self.monitor
        return True

    def _evaluation_ends(self, name: str, opened: bool) -> None:
        if self._capture is None or self._capture.monitor is None:
            return
        self._capture.monitor.end_eval(self._trainer.state.global_step, name)
        if opened:
            self._capture.monitor = None

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self._open or self.monitor is None or not logs:
            return
        with self.monitor.guard("capture.logs"):
            norm = logs.get("grad_norm")
            if norm is not None and not math.isfinite(float(norm)):
                self.monitor.count_non_finite(1)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._open and self.monitor is not None:
            with self.monitor.guard("checkpoint"):
                run_dir = self._trainer._get_output_dir(trial=None)
                self.save_state(Path(run_dir) / f"checkpoint-{state.global_step}")

    def save_state(self, checkpoint: Path) -> None:
        """Write what a resumed run needs into ``checkpoint/rlmon``; failures are counted faults."""
        monitor, capture = self.monitor, self._capture
        if not self._open or monitor is None or capture is None:
            return
        with monitor.guard("checkpoint"):
            save(checkpoint, capture, monitor, self._actuators)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._close()

    def _close(self, *, interrupted: bool = False) -> None:
        if not self._open or self.monitor is None:
            return
        self._open = False
        monitor = self.monitor
        monitor.close()
        self._give_back_trackers()
        self._checkpoint = None
        if self._capture is None:
            return
        self._capture.monitor = None
        with monitor.guard("sinks"):
            state = monitor.detector_state
            step = monitor.last_record.step if monitor.last_record is not None else self._trainer.state.global_step
            self._say(
                goodbye(
                    self.log_dir, monitor.findings, status(state), compared=judged(state), step=step,
                    interrupted=interrupted,
                )
            )  # fmt: skip


def _vocabulary(processing_class: Any) -> list[str]:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    size = len(tokenizer)
    decoded: list[str] = tokenizer.batch_decode([[token] for token in range(size)])
    return decoded
