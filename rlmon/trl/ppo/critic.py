"""The critic: a value head on the policy's last hidden states, or on a trunk of its own."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlmon.errors import ConfigError
from rlmon.trl.models import backbone_of, head_of

CriticKind = Literal["shared", "shared_detached", "separate"]
CRITIC_FILE = "value_head.safetensors"


class Critic(nn.Module):
    """Values of the states of a completion.

    The head is a two-layer network in float32 whose last layer starts at zero, and its bias at the mean of the first
    returns: until it has learnt more, every value is that mean, whatever the scale of the rewards. It is no part of the
    policy: what is saved, served and synchronised as the policy stays an ordinary Transformers model.

    Args:
        policy: the unwrapped policy, a Transformers causal language model with or without an adapter.
        kind: ``shared``: the value loss trains the policy's trunk too. ``shared_detached``: it does not.
            ``separate``: a copy of the trunk, trained where the policy's is.
        seed: of the head's initial weights; the global random state stays as it was.
    """

    def __init__(self, policy: nn.Module, kind: CriticKind, *, seed: int) -> None:
        super().__init__()
        self.kind = kind
        # Behind a tuple: the policy's parameters are not the critic's.
        self._policy = (policy,)
        width = int(head_of(policy).weight.shape[-1])
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        last = self.head[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.begun = False
        """Whether it has seen a return."""
        self.trunk: nn.Module | None = None
        if kind == "separate":
            self.trunk = copy.deepcopy(backbone_of(policy))
            for parameter in self.trunk.parameters():
                parameter.grad = None
        self.to(next(policy.parameters()).device)

    # -- values ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self, completion_length: int) -> Iterator[list[Tensor]]:
        """While the policy's forward runs, collect values [b, T + 1] of each of its batches.

        Value ``t`` is that of the state before token ``t`` of the completion; the last one follows the whole of it.
        """
        heard: list[Tensor] = []
        if self.trunk is not None:
            yield heard
            return

        def hear(module: nn.Module, arguments: Any, output: Any) -> None:
            hidden = output.last_hidden_state[:, -(completion_length + 1) :]
            heard.append(self._values(hidden.detach() if self.kind == "shared_detached" else hidden))

        handle = backbone_of(self._policy[0]).register_forward_hook(hear)
        try:
            yield heard
        finally:
            handle.remove()

    def read(self, input_ids: Tensor, attention_mask: Tensor, completion_length: int, batch_size: int | None) -> Tensor:
        """Values [B, T + 1] from the critic's own trunk."""
        assert self.trunk is not None
        self.trunk.train(self._policy[0].training)
        size = batch_size or len(input_ids)
        found = []
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            output = self.trunk(input_ids=input_ids[rows], attention_mask=attention_mask[rows], use_cache=False)
            found.append(self._values(output.last_hidden_state[:, -(completion_length + 1) :]))
        return torch.cat(found)

    def _values(self, hidden_BTD: Tensor) -> Tensor:
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            values: Tensor = self.head(hidden_BTD.float()).squeeze(-1)
        return values

    def begin(self, mean_return: float) -> None:
        """Take ``mean_return`` for the value of every state."""
        nn.init.constant_(self.head[-1].bias, mean_return)
        self.begun = True

    # -- training --------------------------------------------------------------------------------------------------

    def parameter_groups(self, learning_rate: float, value_learning_rate: float) -> list[dict[str, Any]]:
        """Groups for the policy's optimizer: the head at its own rate, a trunk at the policy's."""
        groups = [{"params": list(self.head.parameters()), "lr": value_learning_rate, "weight_decay": 0.0}]
        trained = [] if self.trunk is None else [p for p in self.trunk.parameters() if p.requires_grad]
        if trained:
            groups.append({"params": trained, "lr": learning_rate, "weight_decay": 0.0})
        return groups

    def share_gradients(self, accelerator: Any) -> None:
        """Mean of the gradients over all ranks: the policy's engine knows nothing of the critic. One collective."""
        trained = [p for p in self.parameters() if p.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([part.reshape(-1).float() for part in parts])
        mean = accelerator.reduce(flat, reduction="mean")
        for p, part in zip(trained, mean.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p).to(p.dtype)

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``value_head.safetensors``: the head, and what is trained of a trunk of its own."""
        from safetensors.torch import save_file

        trained = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters() if p.requires_grad}
        save_file(trained, folder / CRITIC_FILE, metadata={"critic": self.kind, "format": "pt"})

    def load(self, path: Path) -> None:
        """Take what ``save`` wrote. Raises ``ConfigError`` where there is nothing, or it is of another critic."""
        from safetensors.torch import load_file

        file = path / CRITIC_FILE if path.is_dir() else path
        if not file.exists():
            raise ConfigError(
                f"There is no {CRITIC_FILE} in {path}, so PPO cannot go on from it: it was not saved by PPOTrainer. "
                "Resume from one that was, or train from it as the model (model=...) with a new critic."
            )
        saved = load_file(file)
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if saved.keys() != own.keys() or any(saved[name].shape != p.shape for name, p in own.items()):
            raise ConfigError(
                f"{file} is a critic of another kind or for another model; this one is critic={self.kind} with "
                f"{len(own)} tensors, the file has {len(saved)}. Use the settings that it was trained with."
            )
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(saved[name])
        self.begun = True
