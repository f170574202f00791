"""Training in several processes: every process takes its share of each batch, gradients are averaged.

`torchrun` starts the processes and says to each, in the environment, which of how many it is.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from ..errors import WrongInput

Item = TypeVar("Item")


def rank() -> int:
    """Which of the processes this is, from 0."""
    group = _group()
    return group.get_rank() if group else int(os.environ.get("RANK", "0")) if world() > 1 else 0


def world() -> int:
    """How many processes train together."""
    group = _group()
    return group.get_world_size() if group else int(os.environ.get("WORLD_SIZE", "1"))


def share(items: Sequence[Item]) -> Sequence[Item]:
    """What this process takes of one batch: every world-th item from its rank on, equally many in every process.

    Up to world - 1 items at the end of a batch are left out, so that the mean over processes is the mean over items.
    """
    each = len(items) // world()
    return items[rank() :: world()][:each]


def join(device: Any) -> None:
    """Form the group of processes that the environment speaks of, once; it lasts as long as the process."""
    import torch.distributed as dist

    if world() == 1 or _group():
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except ValueError as error:
        raise WrongInput(
            f"WORLD_SIZE is {world()} but the processes cannot meet ({error}); start them with torchrun, or unset WORLD_SIZE."
        ) from error
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


def average(tensors: Sequence[Any], loss: Any) -> Any:
    """Average gradients over the processes, in place, and return the mean loss (0-dimensional).

    A tensor that received a gradient in some processes only counts as zero in the others; in none, it stays None.
    """
    if world() == 1:
        return loss
    import torch

    given = torch.tensor([float(t.grad is not None) for t in tensors], device=loss.device)
    pieces = [(torch.zeros_like(t) if t.grad is None else t.grad).reshape(-1) for t in tensors]
    flat = torch.cat([*pieces, given, loss.reshape(1)])
    torch.distributed.all_reduce(flat)
    flat /= world()
    *means, given, mean_loss = flat.split([*(t.numel() for t in tensors), len(tensors), 1])
    for tensor, mean, count in zip(tensors, means, given.tolist(), strict=True):
        if count > 0:
            tensor.grad = mean.reshape(tensor.shape).to(tensor.dtype)
    return mean_loss[0]


def from_first(tensors: Iterable[Any]) -> None:
    """Overwrite tensors with those of the first process."""
    if world() > 1:
        import torch

        for tensor in tensors:
            torch.distributed.broadcast(tensor.data, 0)


def number_from_first(value: float, device: Any) -> float:
    """The number that the first process has."""
    if world() == 1:
        return value
    import torch

    told = torch.tensor([value], dtype=torch.float64, device=device)
    torch.distributed.broadcast(told, 0)
    return float(told)


def _group() -> Any:
    """torch.distributed once a group was formed, without importing torch for the question."""
    torch = sys.modules.get("torch")
    dist = getattr(torch, "distributed", None)
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
