"""Modules and tensors: what a training moves, and what a detector keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MissingExtra, WrongInput
from ._recipe import Group


@dataclass
class Tensors:
    """Every tensor by a name that is the same in every run: trained ones, and the buffers of modules."""

    trained: dict[str, Any]
    buffers: dict[str, Any]
    modules: list[Any]
    groups: list[tuple[Group, list[str]]]

    @classmethod
    def of(cls, parameters: Any) -> Tensors:
        import torch

        made = cls({}, {}, [], [])
        if not isinstance(parameters, (torch.nn.Module, Mapping)):
            parameters = list(parameters)
        if isinstance(parameters, list) and any(isinstance(g, Group) for g in parameters):
            for i, group in enumerate(parameters):
                if not isinstance(group, Group):
                    raise WrongInput(f"train got a {type(group).__name__} among its groups; wrap it: Group(...).")
                made._add(group, f"{i}.")
        else:
            made._add(Group(parameters), "")
        if not made.trained:
            raise WrongInput("train got no tensor that requires a gradient; give modules or tensors to move.")
        if len({id(t) for t in made.trained.values()}) < len(made.trained):
            raise WrongInput("train got the same tensor twice; give each to one group.")
        return made

    def _add(self, group: Group, prefix: str) -> None:
        import torch

        if isinstance(group.params, torch.nn.Module):
            named = {k: p for k, p in group.params.named_parameters() if p.requires_grad}
            self.buffers |= {prefix + k: b for k, b in group.params.named_buffers()}
            self.modules.append(group.params)
        else:
            given = group.params
            named = dict(given) if isinstance(given, Mapping) else {str(i): t for i, t in enumerate(given)}
            for name, tensor in named.items():
                if not isinstance(tensor, torch.Tensor) or not tensor.requires_grad:
                    raise WrongInput(f"train got {name!r}, which is not a tensor that requires a gradient.")
        self.trained |= {prefix + k: p for k, p in named.items()}
        self.groups.append((group, [prefix + k for k in named]))

    def everything(self) -> dict[str, Any]:
        return {**self.trained, **self.buffers}

    def copy(self) -> dict[str, Any]:
        return {k: t.detach().clone() for k, t in self.everything().items()}

    def put(self, values: Mapping[str, Any]) -> None:
        tensors = self.everything()
        for name, value in values.items():
            tensors[name].data.copy_(value)

    def mode(self, training: bool) -> None:
        for module in self.modules:
            module.train(training)


def parameters_of(module: Any) -> dict[str, np.ndarray]:
    """Parameters and buffers (statistics of batch norm) by name, as copies on the host: what a detector has learnt."""
    arrays = {}
    for name, tensor in module.state_dict().items():
        half = tensor.is_floating_point() and tensor.dtype.itemsize == 2  # numpy knows no bfloat16
        arrays[name] = np.array((tensor.float() if half else tensor).detach().cpu().numpy())
    return arrays


def load_parameters(module: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Put learnt arrays into a module built with the same settings; returns it in eval mode, asking for no gradients.

    Raises:
        WrongInput: a name or a shape is not that of the module.
    """
    torch = need_torch()
    state = module.state_dict()
    missing, foreign = sorted(set(state) - set(arrays)), sorted(set(arrays) - set(state))
    wrong = [k for k in state if k in arrays and tuple(state[k].shape) != np.shape(arrays[k])]
    if missing or foreign or wrong:
        what = (
            f"{missing[0]} is missing" if missing
            else f"{foreign[0]} is unknown to it" if foreign
            else f"{wrong[0]} has shape {np.shape(arrays[wrong[0]])} instead of {tuple(state[wrong[0]].shape)}"
        )  # fmt: skip
        raise WrongInput(
            f"the saved parameters do not fit {type(module).__name__}: {what}; "
            "use the settings it was fitted with, or fit again."
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))
    return module.eval().requires_grad_(False)


def need_torch() -> Any:
    """torch, or one sentence that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(f"this needs torch ({error}): pip install 'anomalens[torch]'.") from None
    return torch
