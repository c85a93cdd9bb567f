"""``RLMon``: the drop-in callback that ties a TRL trainer to the monitor."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlmon import detectors
from rlmon.config import RLMonConfig
from rlmon.console import goodbye, hello, say
from rlmon.errors import AttachError, ConfigError
from rlmon.interventions.actions import RollBack
from rlmon.interventions.validate import said
from rlmon.monitor import About, Monitor, Ranks, Resume
from rlmon.printable import one_line
from rlmon.restored import Restored, describe, mapping
from rlmon.trl import capabilities, mirror
from rlmon.trl.around_train import around_evaluation, before_use, go_on_once, on_failure, resumed_from
from rlmon.trl.attaching import in_words, untouched_by_failure
from rlmon.trl.binding import bound_arguments
from rlmon.trl.capture import Capture
from rlmon.trl.checkpoint import (
    SHARED_FILE,
    STATE_FOLDER,
    agree,
    first_of_any_rank,
    of_rank_0,
    rank_file,
    read_state,
    write_json,
)
from rlmon.trl.trl_ppo import TrlPPOCapture

if TYPE_CHECKING:
    from rlmon.trl.base import BaseModel
    from rlmon.trl.helm import Helm

RECORDED_SETTINGS = (
    "beta", "temperature", "num_generations", "num_iterations", "steps_per_generation", "generation_batch_size",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "loss_type",
    "scale_rewards", "learning_rate", "lr_scheduler_type", "max_steps", "num_train_epochs", "seed", "epsilon",
    "epsilon_high", "mask_truncated_completions", "entropy_coef", "use_adaptive_entropy", "top_entropy_quantile",
    "sync_ref_model", "use_vllm", "logging_steps", "output_dir",
)  # fmt: skip


class RLMon(TrainerCallback):
    """Watches a TRL ``GRPOTrainer`` or ``RLOOTrainer`` without changing what it does.

    TRL's own ``PPOTrainer`` (1.8 to 1.12) as well, as far as its loop shows itself (``rlmon.trl.trl_ppo``).

    ``RLMon(trainer)`` after the trainer is built, or ``callbacks=[RLMon()]`` when building it. Settings are an
    ``RLMonConfig``, keywords (``policy="protect"`` or ``rlmon_policy="protect"``), or both, where keywords win over
    the config's fields. Raises ``AttachError`` or ``ConfigError`` before the first step where watching would
    half-work; nothing is raised into the loop after that.
    """

    def __init__(self, trainer: Any = None, config: RLMonConfig | None = None, **settings: Any) -> None:
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
        self.monitor: Monitor | None = None
        """The monitor of the current or last ``train()`` call; before the first, of an ``evaluate()``."""
        self.roll_back_to: Path | None = None
        """Where training is to go on from, once, after a rule rolled the run back; ``None`` otherwise."""
        self._capture: Capture | TrlPPOCapture | None = None
        self._checkpoint: Path | None = None
        self._save_waits = False
        self._open = False
        self._continues = False
        """The log was begun by an evaluation before ``train()``, which goes on with it."""
        self._undo: list[Callable[[], None]] = []
        """What takes wrappers off again, the last one first."""
        self._last: Callable[[], Any] = lambda: None
        """The trainer that is, or was last, or is going to be watched; held weakly."""
        self._give_back_wandb: Callable[[], None] = lambda: None
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
        self._unwrap()  # what waits for the first use
        with in_words("tell whether this trainer can be watched", "Use TRL's GRPOTrainer or RLOOTrainer"):
            capabilities.refuse(trainer, self.config)
        with untouched_by_failure(trainer):
            self._capture = self._attached(trainer)
        if self._last() is not trainer:
            self.monitor, self._continues = None, False  # of another trainer, whose log is its own
            self._last = weakref.ref(trainer)
        self._say(hello(self.log_dir))
        for note in () if self._capture.helm is None else self._capture.helm.notes:
            self._say(said(note))

    def _attached(self, trainer: Any) -> Capture | TrlPPOCapture:
        capture: Capture | TrlPPOCapture
        capture = TrlPPOCapture(trainer, self.config) if capabilities.is_trl_ppo(trainer) else Capture(trainer)
        with in_words("find the initial base model", "Set rlmon_base_kl: off"):
            capture.base = capture.choose_base(self.config)
        with in_words("read the sources of the prompts", "Set rlmon_source_column to a column of the dataset"):
            capture.sources = capture.build_sources(self.config)
        if self.config.rlmon_policy is not None:
            from rlmon.steering import load_policy
            from rlmon.trl.helm import Helm

            with in_words("make ready for the rules", "Leave rlmon_policy out"):
                capture.helm = Helm(
                    trainer,
                    capture.base,
                    load_policy(self.config.rlmon_policy),
                    capture.sources,
                    self.config,
                )
        with in_words("put its hooks in place", "Use TRL's own GRPOTrainer or RLOOTrainer"):
            capture.install()
            original = trainer._load_optimizer_and_scheduler

            @functools.wraps(original)
            def load(*args: Any, **kwargs: Any) -> Any:
                with contextlib.suppress(TypeError):  # a call that cannot be bound is refused by the original
                    checkpoint = bound_arguments(original, args, kwargs, ("checkpoint",)).get("checkpoint")
                    if checkpoint is not None:
                        self._checkpoint = Path(checkpoint)
                return original(*args, **kwargs)

            trainer._load_optimizer_and_scheduler = load
            self._undo = [on_failure(trainer, functools.partial(self._close, interrupted=True))]
            if isinstance(capture, Capture):
                self._undo.append(around_evaluation(trainer, self._evaluation_begins, self._evaluation_ends))
            if capture.helm is not None and capture.helm.may_roll_back:
                self._undo.append(go_on_once(trainer, self))
            if self not in trainer.callback_handler.callbacks:
                trainer.add_callback(self)
        return capture

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
        trainer.__dict__.pop("_load_optimizer_and_scheduler", None)
        trainer.remove_callback(self)
        self._capture = None

    def _unwrap(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _find_trainer(self) -> Any:
        """The trainer whose callback list holds this object, from the frames that called us."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            candidate = frame.f_locals.get("self")
            if isinstance(candidate, Trainer):
                handler = candidate.__dict__.get("callback_handler")
                if handler is not None and any(callback is self for callback in handler.callbacks):
                    return candidate
            frame = frame.f_back
        return None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._capture is None:
            trainer = self._find_trainer()
            if trainer is not None and self.config.rlmon_policy is not None:
                # Rules look at what TRL builds after this.
                self._last, self._undo = weakref.ref(trainer), [before_use(trainer, self.attach)]
            elif trainer is not None:
                self.attach(trainer)

    # -- one train() call ------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._capture is None:
            trainer = self._find_trainer()
            if trainer is None:
                raise AttachError(
                    "RLMon could not find the trainer that it was given to. Attach it by hand: RLMon(trainer)."
                )
            self.attach(trainer)
        self._begin(state)

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
        self._capture.step_begins(self._trainer.state.global_step, self.config.rlmon_base_kl_every)
        self._capture.expect_unidentified_round(prompts, completions, completion_ids, rows)

    def _begin(self, state: TrainerState) -> None:
        assert self._capture is not None
        self._save_waits, self.roll_back_to = False, None
        trainer, capture = self._trainer, self._capture
        base = capture.base
        assert base is not None
        if self._checkpoint is None:  # it was loaded before the hook that sees it was there
            self._checkpoint = resumed_from(trainer)
        saved, restored = self._restore(state, base)
        monitor = self._make_monitor(
            state.max_steps,
            Resume(
                step=state.global_step if state.global_step > 0 else None,
                state=saved,
                restored=restored,
                continues=self._continues,
            ),
            policy=None if capture.helm is None else capture.helm.policy,
            levers=capture.helm,
        )
        self._continues = False
        if capture.helm is not None:
            with monitor.guard("interventions"):
                capture.helm.begin(monitor)
        monitor.kl_reason = base.unmeasured(state.global_step, self.config.rlmon_base_kl_every)
        monitor.open_sinks()
        if trainer.accelerator.is_main_process and self.config.rlmon_mirror and self.config.rlmon_wandb:
            with monitor.guard("mirror"):
                self._give_back_wandb = mirror.keep_out_of_wandb(trainer)
        self.monitor = capture.monitor = monitor
        self._open = True

    def _make_monitor(self, steps: int, resume: Resume, **rules: Any) -> Monitor:
        """A monitor with its log open, for a ``train()`` call or an evaluation outside of one."""
        assert self._capture is not None
        trainer, capture = self._trainer, self._capture
        base = capture.base
        assert base is not None
        monitor = Monitor(
            self.config,
            directory=self.log_dir,
            group_size=capture.group_size,
            about=About(
                trainer=type(trainer).__name__,
                trainer_config={
                    name: _plain(getattr(trainer.args, name, None))
                    for name in (*RECORDED_SETTINGS, *capture.recorded_settings)
                },
                total_steps=steps if steps > 0 else None,
                capabilities=[
                    *capabilities.plan(
                        trainer.args,
                        self.config,
                        trainer=type(trainer).__name__,
                        base_kind=base.kind,
                        base_reason=base.reason,
                    ),
                    capture.sources.capability,
                    *(() if capture.helm is None else capture.helm.capabilities),
                ],
                packages=_packages(),
                git_commit=_git_commit(),
                **_generations(trainer.args),
            ),
            ranks=Ranks(
                rank=trainer.accelerator.process_index,
                world_size=trainer.accelerator.num_processes,
                reduce=_reducer(trainer),
                share=functools.partial(of_rank_0, trainer=trainer),
                gather=_gatherer(trainer),
            ),
            resume=resume,
            critic=capture.critic,
            **rules,
        )
        with monitor.guard("capture.vocabulary"):
            monitor.use_vocabulary(_vocabulary(trainer.processing_class))
        return monitor

    def _restore(self, state: TrainerState, base: BaseModel) -> tuple[dict[str, Any] | None, Restored]:
        """What the checkpoint that the run resumes from gives back; what cannot be read begins anew.

        The same on every rank, which all come here: whether there is a checkpoint is the trainer's own knowledge.
        """
        assert self._capture is not None
        helm = self._capture.helm
        restored, saved = Restored(), None
        resumed = state.global_step > 0
        folder = self._checkpoint / STATE_FOLDER if resumed and self._checkpoint is not None else None
        if folder is not None:
            saved = read_state(folder, self._trainer, restored)
        elif resumed:
            restored.lost["all of rlmon's state"] = "rlmon was attached too late to see which checkpoint was loaded"
        if resumed:
            fingerprint = None if saved is None else saved["shared"].get("base_fingerprint")
            try:
                base.resume(folder, fingerprint if isinstance(fingerprint, str) else None)
            except Exception as error:
                restored.lost["snapshot of the base"] = describe(error)
                base.give_up(f"the checkpoint's snapshot of the base cannot be read ({describe(error)})")
        if saved is not None and saved["shared"].get("source_map") is not None:
            with restored.part("strata of the data"):
                self._capture.sources.load(mapping(saved["shared"]["source_map"]))
        if helm is not None:
            helm.prepare(folder, None if saved is None else saved["rank"], restored)
        if folder is not None:
            agree(restored, self._trainer)
        return saved, restored

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._open and self._capture is not None:
            self._capture.step_begins(state.global_step, self.config.rlmon_base_kl_every)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        monitor, capture = self.monitor, self._capture
        if not self._open or monitor is None or capture is None:
            return
        base = capture.base
        if base is not None:
            monitor.kl_reason = base.unmeasured(state.global_step - 1, self.config.rlmon_base_kl_every)
        capture.step_ends()
        record = monitor.end_step(state.global_step)
        if capture.helm is not None:
            with monitor.guard("interventions"):
                self._steer_loop(monitor, capture.helm, state, control)
        if record is None or not self.config.rlmon_mirror:
            return
        with monitor.guard("mirror"):
            capture.mirror(mirror.headline(record))

    def _steer_loop(self, monitor: Monitor, helm: Helm, state: TrainerState, control: TrainerControl) -> None:
        """End training where a rule said so, and let checkpoints wait for the end of a round: what TRL has buffered
        of it is in no checkpoint, so a run resumed in the middle would act on other rows. The same on all ranks."""
        last = 0 < state.max_steps <= state.global_step
        if monitor.steering is not None and monitor.steering.holds_state and helm.in_mid_round and not last:
            self._save_waits = self._save_waits or control.should_save
            control.should_save = False
            return
        if self._save_waits:
            self._save_waits, control.should_save = False, True
        if helm.ends is None or monitor.steering is None or not monitor.steering.settled(helm.ends):
            return
        if helm.ends.new == "stop":
            control.should_training_stop = control.should_save = True
            return
        self.roll_back_to = helm.mark_return()
        if self.roll_back_to is None:  # rotated away since (save_total_limit), or on a disk that is full
            monitor.steering.fail(RollBack, "the checkpoint to return to is gone or cannot be written to")
            helm.ends = None
            return
        control.should_training_stop, control.should_save = True, False

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
        args: TrainingArguments,
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

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
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
            folder = checkpoint / STATE_FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            trainer = capture.trainer
            own = monitor.rank_state()
            if capture.helm is not None:
                own |= capture.helm.rank_state()
            write_json(folder / rank_file(trainer.accelerator.process_index), own)
            if trainer.accelerator.is_main_process:
                shared = monitor.shared_state() | {"source_map": capture.sources.state()}
                if capture.helm is not None:
                    capture.helm.save(folder)
                if capture.base is not None:
                    shared["base_fingerprint"] = capture.base.fingerprint
                    capture.base.save(folder)
                write_json(folder / SHARED_FILE, shared)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._close()

    def _close(self, *, interrupted: bool = False) -> None:
        if not self._open or self.monitor is None:
            return
        self._open = False
        monitor = self.monitor
        monitor.close()
        self._give_back_wandb()
        self._checkpoint = None
        if self._capture is None:
            return
        self._capture.monitor = None
        with monitor.guard("sinks"):
            status = detectors.status(monitor.detector_state)
            step = monitor.last_record.step if monitor.last_record is not None else self._trainer.state.global_step
            compares = {spec.id for spec in detectors.DETECTORS if spec.rule not in ("absolute", "immediate")}
            self._say(
                goodbye(self.log_dir, monitor.findings, status, compares=compares, step=step, interrupted=interrupted)
            )


def _generations(args: Any) -> dict[str, Any]:
    """How many completions a generation has over all ranks, and how many generations one step can train on."""
    size, steps = getattr(args, "generation_batch_size", None), getattr(args, "steps_per_generation", None)
    if not size or not steps:
        return {}
    batches = args.gradient_accumulation_steps
    uneven = batches % steps != 0 and steps % batches != 0
    return {"rows_per_round": int(size), "rounds_per_step": -(-batches // steps) + int(uneven)}


def _reducer(trainer: Any) -> Any:
    """Sum of a float64 vector over ranks: what a step's exchange is made of."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return None
    # Apple's backend has no float64; it has no collectives of several processes either, so this is a precaution.
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64

    def reduce(vector: np.ndarray) -> np.ndarray:
        total = accelerator.reduce(torch.from_numpy(vector).to(accelerator.device, dtype), reduction="sum")
        summed: np.ndarray = total.to("cpu", torch.float64).numpy()
        return summed

    return reduce


def _gatherer(trainer: Any) -> Any:
    """The int64 matrices of all ranks, stacked in rank order."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return None

    def gather(matrix_nK: np.ndarray) -> np.ndarray:
        every = accelerator.gather(torch.from_numpy(matrix_nK).to(accelerator.device))
        stacked: np.ndarray = every.cpu().numpy()
        return stacked

    return gather


def _vocabulary(processing_class: Any) -> list[str]:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    size = len(tokenizer)
    decoded: list[str] = tokenizer.batch_decode([[token] for token in range(size)])
    return decoded


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def _packages() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("rlmon", "trl", "transformers", "torch", "peft", "accelerate", "numpy", "pyarrow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    module = sys.modules.get("trl")
    if module is not None:
        versions["trl"] = str(module.__version__)
    return versions


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    try:
        # By its path: looking for a bare name in os.environ makes Python forget which warnings it has shown.
        done = subprocess.run(
            [git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False, cwd=os.getcwd()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
