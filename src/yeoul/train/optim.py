"""Learning rates as functions of the step, and optimizers over the parameters that train."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from yeoul.errors import UserError
from yeoul.train.config import TrainConfig

Rates = Callable[[str], float]
"""Name of a parameter -> what its learning rate is multiplied by."""

WSD_DECAY = 0.2
"""Share of the steps in which the schedule "wsd" decays; arXiv:2404.06395 finds 10 % enough."""


def learning_rate(config: TrainConfig, step: int, start: int = 0) -> float:
    """Learning rate of step number `step`, counted from 0; nothing else decides it.

    Args:
        config: what the run is told.
        step: of the run.
        start: where a finished run was lengthened. What is added then has a schedule of its own: the rate rises again,
            from its last value, and falls again, as Ibrahim and others (2024) found good for training that goes on.
    """
    steps, step = config.steps - start, step - start
    low = config.lr * config.min_lr_ratio
    if start and config.schedule == "constant":
        return config.lr
    warmup = min(steps, math.ceil(config.warmup * steps))
    if step < warmup:
        bottom = low if start else 0.0
        return bottom + (config.lr - bottom) * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        done = (step - warmup) / max(1, steps - 1 - warmup)
        return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    start = max(warmup, steps - math.ceil(WSD_DECAY * steps))
    if step < start:
        return config.lr
    return config.lr + (low - config.lr) * min(1.0, (step - start + 1) / max(1, steps - start))


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, for those with `requires_grad`; a tied one appears once, under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Optimizer:
    """One or two torch optimizers over named parameters, seen as one.

    AdamW decays matrices only: not embeddings, nor anything with one dimension. Muon (torch.optim.Muon, with its
    update scaled to AdamW's RMS, so that one learning rate serves both) takes the weights of hidden linear layers.

    Args:
        model: its parameters with `requires_grad` are trained.
        config: what to train them with.
        rates: what the learning rate of a parameter is multiplied by, by its name; 1 when not given.

    Attributes:
        names: names of the trained parameters, in the model's order.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, rates: Rates | None = None) -> None:
        self._parameters = trainable_parameters(model)
        if not self._parameters:
            raise UserError("no parameter of the model is trainable", fix="unfreeze some of them")
        self.names = list(self._parameters)
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
        linear -= embeddings | {id(getattr(model, "output_weight", None))}
        adamw, muon = dict[tuple[float, float], list[nn.Parameter]](), dict[float, list[nn.Parameter]]()
        for name, parameter in self._parameters.items():
            rate = 1.0 if rates is None else rates(name)
            if config.optimizer == "muon" and id(parameter) in linear:
                muon.setdefault(rate, []).append(parameter)
            else:
                decays = parameter.ndim >= 2 and id(parameter) not in embeddings
                adamw.setdefault((config.weight_decay if decays else 0.0, rate), []).append(parameter)
        self._optimizers: list[torch.optim.Optimizer] = []
        if adamw:
            self._optimizers.append(
                torch.optim.AdamW(
                    [{"params": p, "weight_decay": decay, "rate": rate} for (decay, rate), p in adamw.items()],
                    lr=config.lr,
                    betas=config.betas,
                    fused=next(iter(self._parameters.values())).device.type in ("cpu", "cuda"),
                )
            )
        if muon:
            self._optimizers.append(
                torch.optim.Muon(
                    [{"params": p, "rate": rate} for rate, p in muon.items()],
                    lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw",
                )
            )  # fmt: skip

        self._owner = {
            id(p): optimizer
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }

    def step(self, lr: float) -> None:
        """Update the parameters with learning rate `lr` times their own rate, and forget their gradients."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["rate"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def zero_grad(self) -> None:
        """Forget gradients without a step."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def finish_gradients(self, count: int, clip: float) -> Tensor:
        """Divide summed gradients by `count` and clip their joint norm; returns the norm before clipping."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if not gradients:
            return torch.zeros(())
        # One multiplication serves both the mean over tokens and the clipping.
        norm = torch.nn.utils.get_total_norm(gradients) / max(1, count)
        scale = (clip / (norm + 1e-6)).clamp(max=1.0) if clip > 0 else torch.ones_like(norm)
        torch._foreach_mul_(gradients, (scale / max(1, count)).to(gradients[0].device))
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizers' state as tensors named "parameter|key"."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            for key, value in self._state_of(parameter).items():
                tensors[f"{name}|{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return tensors

    def layout(self) -> list[dict[str, Any]]:
        """The parameter groups in plain values: kind, scalar settings, and parameters by name."""
        name_of = {id(p): name for name, p in self._parameters.items()}
        return [
            {
                "optimizer": type(optimizer).__name__,
                "parameters": [name_of[id(p)] for p in group["params"]],
                "settings": {k: v for k, v in group.items() if isinstance(v, int | float | bool | str)},
            }
            for optimizer in self._optimizers
            for group in optimizer.param_groups
        ]

    def check_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """ValueError where a tensor is missing, is of no trained parameter, or has another shape than its parameter."""
        keys: dict[int, dict[str, set[str]]] = {}  # optimizer -> parameter -> names of its tensors
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("|")
            if name not in self._parameters:
                raise ValueError(f"a state of {name!r}, which is not trained here")
            if tensor.numel() != 1 and tensor.shape != self._parameters[name].shape:
                raise ValueError(f"the state {key!r} of {name!r} has the shape {tuple(tensor.shape)}")
            keys.setdefault(id(self._owner[id(self._parameters[name])]), {}).setdefault(name, set()).add(key)
        for own in keys.values():  # a parameter that never had a gradient has none
            for name, found in own.items():
                if found != set().union(*own.values()):
                    raise ValueError(f"a state of {name!r} is missing")

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave.

        Raises:
            ValueError: a tensor belongs to no trained parameter.
        """
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("|")
            if name not in self._parameters:
                raise ValueError(f"optimizer state for {name!r}, which is not trained here")
            parameter = self._parameters[name]
            self._state_of(parameter)[key] = tensor.to(parameter.device, copy=True)

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self._owner[id(parameter)].state[parameter]
