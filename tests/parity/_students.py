"""Names of the authors' students in our modules, and students made from a stored configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from anomalens.parts.distillation import Plan
from anomalens.parts.train import Recipe

OCE = {"conv1": "from1.0", "bn1": "from1.1", "conv2": "from1.3", "bn2": "from1.4", "conv3": "from2.0", "bn3": "from2.1"}
BLOCK = {
    "conv1": "body.0", "bn1": "body.1", "conv2": "body.3", "bn2": "body.4", "conv3": "body.6", "bn3": "body.7",
    "downsample": "shortcut", "upsample": "shortcut",
}  # fmt: skip


def our_name(theirs: str) -> str:
    """`oce.bn_layer.0.conv1.weight` -> `oce.blocks.0.body.0.weight`, `attention.2.fc.bias` -> `scale2.bias`."""
    part, name, *rest = theirs.split(".")
    if part == "attention":
        return f"scale{name}.{rest[-1]}"
    if part == "oce" and name in OCE:
        return ".".join([part, OCE[name], *rest])
    stage = "blocks" if part == "oce" else f"stage{4 - int(name.removeprefix('layer'))}"
    return ".".join([part, stage, rest[0], BLOCK[rest[1]], *rest[2:]])


def ours(stored: Mapping[str, np.ndarray], prefix: str, parts: tuple[str, ...] = ("oce", "decoder")) -> dict[str, Any]:
    """The stored tensors of these parts under `prefix`, by our names."""
    found = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    return {our_name(k): v for k, v in found.items() if k.split(".")[0] in parts}


def plan_of(config: Mapping[str, Any]) -> Plan:
    return Plan(
        tuple(config["channels"]),
        tuple(config["decoder_blocks"]),
        config["oce_blocks"],
        expansion=4 if config["block"] == "bottleneck" else 1,
        widen=config["width_factor"],
    )


def set_batch_norm(module: Any, config: Mapping[str, Any]) -> None:
    import torch

    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eps, norm.momentum = config["batch_norm"]["eps"], config["batch_norm"]["momentum"]


@contextmanager
def relus() -> Iterator[list[np.ndarray]]:
    """Which units every ReLU lets through meanwhile, in the order of the calls."""
    import torch

    real, lit = torch.nn.functional.relu, []

    def relu(x: Any, inplace: bool = False) -> Any:
        out = real(x, inplace)
        lit.append((out.detach() > 0).numpy().ravel())
        return out

    with mock.patch.object(torch.nn.functional, "relu", relu):
        yield lit


def rule_in_training(rule: Mapping[str, Any], key: str, precision: str) -> dict[str, Any]:
    """The stored tolerance of a training's tensor. In float32 the statistics of a batch of few cells blow up the rounding of
    single cells, and the losses after the first step follow from gradients, see `excuse`."""
    loose = {"fraction": 0.99} if precision == "float32" and "." not in key else {}
    return {**loose, **rule, **({"index": 0} if loose and key == "loss" else {})}


def excuse(key: str, single: Mapping[str, Any], double: Mapping[str, Any]) -> str:
    """Why a gradient in float32, or a parameter after a step, may be far off: the rounding took a ReLU to its other side,
    where the gradient is another one. '' where none changed sides, so that there is no excuse. In float64 none does."""
    turned = int((single["relus"] != double["relus"]).sum())
    return f"rounding turned {turned} of {single['relus'].size} ReLUs" if turned and "." in key else ""


def recipe_of(optimizer: Mapping[str, Any], steps: int) -> Recipe:
    """The recipe of a stored run; what it does not say is as in every optimiser of torch."""
    assert optimizer["eps"] == 1e-8
    return Recipe(
        steps=steps,
        optimiser=optimizer["type"].lower(),
        lr=optimizer["lr"],
        betas=tuple(optimizer["betas"]),
        weight_decay=optimizer["weight_decay"],
    )
