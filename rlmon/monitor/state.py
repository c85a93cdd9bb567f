"""What a run knows by now and what outlives a step: all that a checkpoint gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rlmon.detectors as detectors
from rlmon.config import RLMonConfig
from rlmon.metrics.ledger import SolveLedger
from rlmon.metrics.step import Families
from rlmon.monitor.base import BaseSums
from rlmon.monitor.illustration import Illustration
from rlmon.monitor.journal import Journal
from rlmon.monitor.judging import Judging
from rlmon.monitor.setting import Ranks, Resume
from rlmon.monitor.successes import Successes
from rlmon.records import Split
from rlmon.restored import NO_STATE, detector_state, mapping, policy_change

if TYPE_CHECKING:
    from rlmon.controller import Actuators, Controller
    from rlmon.interventions.policy import Policy


class State:
    """The parts of a monitor that go on from step to step; each is taken up from a checkpoint as a whole, or begins
    anew."""

    def __init__(
        self,
        config: RLMonConfig,
        families: Families,
        judging: Judging,
        journal: Journal,
        ranks: Ranks,
        policy: Policy | None,
    ) -> None:
        self.families, self.judging = families, judging
        self.rounds: dict[Split, int] = {"train": 0, "eval": 0}
        self.base = BaseSums(families)
        self.illustration = Illustration(
            families.modes,
            keeps_text=config.rlmon_store_text == "full" and config.rlmon_text_sample_per_round != 0,
        )
        self.successes = Successes(
            config.success, world_size=ranks.world_size, changed=self._say_success, count_anew=self._count_anew
        )
        self.source_names: dict[str, str] = {}
        """By key, as all ranks have learned them."""
        self.policy = None if policy is None else policy.to_dict()
        self.controller: Controller | None = None
        self._config, self._journal, self._ranks = config, journal, ranks
        self._counts_anew = False

    def act_by(self, policy: Policy, actuators: Actuators | None, resume: Resume) -> None:
        """Take up the rules, after the rest of the checkpoint."""
        from rlmon.controller import AdvantagesOnly, take_up

        self.controller = take_up(
            policy,
            None if resume.state is None else resume.state["shared"].get("steering"),
            resume.restored,
            actuators=actuators if actuators is not None else AdvantagesOnly(policy),
            write=self._journal.action,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            gather=self._ranks.gather,
        )
        if self._counts_anew:
            self.controller.count_anew()

    # -- success -----------------------------------------------------------------------------------------------------

    def log_success(self, step: int) -> None:
        """Into the log: what counts as a success."""
        self._journal.event("success", {"step": step, **self.successes.definition.to_json()})

    def _say_success(self, step: int, again: bool) -> None:
        """Into the log and onto the console: what counts as a success from now on."""
        self.log_success(step)
        definition = self.successes.definition
        what = "a success is now" if again else "a success is"
        self._journal.say(f"{what} {definition}" if definition.known else f"success is not known: {definition}")

    def _count_anew(self) -> None:
        """What the ledgers have counted were successes of another kind."""
        self.judging.ledger = SolveLedger()
        self._counts_anew = True
        if self.controller is not None:
            self.controller.count_anew()

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def shared(self, step: int) -> dict[str, Any]:
        """What a resumed run needs and all ranks have in common, as JSON types."""
        return {
            "version": 3,
            "step": step,
            "rounds": dict(self.rounds),
            "detectors": detectors.state_to_json(self.judging.state),
            **self.base.state(),
            "modes": list(self.families.modes),
            "sources": self.source_names,
            "ledger": self.judging.ledger.state(),
            "success": self.successes.deciding.to_json(),
            "steering": None if self.controller is None else self.controller.state(),
            "policy": self.policy,
        }

    def of_rank(self) -> dict[str, Any]:
        """What this rank alone knows, as JSON types: examples of completions, of rank 0."""
        return {"version": 3, "base_examples": self.illustration.base_examples}

    def load(self, resume: Resume) -> None:
        """Take up each part of the checkpoint as a whole, or begin it anew."""
        assert resume.state is not None
        shared, own = mapping(resume.state["shared"]), mapping(resume.state.get("rank") or {})
        restored = resume.restored
        with restored.part("examples"):
            # Of rank 0 alone, and with the shared state in version 1.
            self.illustration.load(own.get("base_examples", shared.get("base_examples", {})))
        with restored.part("round numbers"):
            self.rounds = {split: max(0, int(shared["rounds"][split])) for split in self.rounds}
        with restored.part("names of sources"):
            names = {str(key): str(name) for key, name in mapping(shared.get("sources", {})).items()}
            self.source_names.update(names)
        if shared.get("modes") != list(self.families.modes):
            # The statistics of other modes are other statistics.
            reason = "the format modes are others now" if "modes" in shared else "'modes' is missing"
            restored.lost |= {"detectors": reason, "baseline": reason}
        else:
            with restored.part("detectors"):
                self.judging.state = detectors.with_own(detector_state(shared["detectors"]), self.judging.own)
            with restored.part("baseline"):
                self.base.load(shared)
        if self.judging.state.alpha != self._config.rlmon_alpha:
            restored.changed.append(
                f"rlmon_alpha is {self._config.rlmon_alpha} now; the detectors go on with {self.judging.state.alpha}, "
                "which they began with."
            )
        with restored.part("ledger of solve rates"):
            # Version 1 kept one on each rank: all ranks go on with that of rank 0.
            saved = shared["ledger"] if "ledger" in shared else self._ranks.of_rank_0(own.get("ledger"))
            if saved is not None:
                ledger = SolveLedger.load(mapping(saved))
                ledger.credibly_below(["a prompt"], ["a source"])
                self.judging.ledger = ledger
        with restored.part("what counts as a success"):
            self.successes.load(shared.get("success"), restored)
        if "policy" in shared and (change := policy_change(shared["policy"], self.policy)) is not None:
            restored.changed.append(change)

    def say_what_begins_anew(self, resume: Resume, step: int) -> None:
        """One line on the console and a ``note`` in the log, where the checkpoint did not give back everything."""
        nothing = resume.state is None
        text = resume.restored.text() or (NO_STATE if nothing else None)
        if text is None:
            return
        anew = sorted({*resume.restored.lost, *(("detectors",) if nothing else ())})
        self._journal.event("note", {"text": text, "begins_anew": anew})
        self._journal.say(f"resumed at step {step}. {text}")
