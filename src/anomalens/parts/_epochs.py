"""Batches of epoch after epoch, in an order that a seed decides, so that a training finds its place again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import WrongInput
from ._ranks import share, world
from .batches import ahead

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shuffled(Generic[Item]):
    """Every item once per epoch, in an order that (seed, epoch) decides: the usual `batches` of `train`.

    load: (item, generator) -> an array or a tuple of arrays; a batch is these stacked, (B, ...). It runs in threads ahead
        of the network. The generator depends on seed, epoch and place alone: what is random in an item is drawn from it.
    drop_last: leave out an incomplete last batch. replace: draw items with replacement, as many as there are.

    Of several processes each loads its share of a batch, see `share`.
    """

    items: Sequence[Item]
    batch: int
    load: Callable[[Item, np.random.Generator], Any]
    seed: int = 0
    drop_last: bool = False
    replace: bool = False

    def __len__(self) -> int:
        """Batches in an epoch; a rest that cannot give every process an item is left out."""
        full, rest = divmod(len(self.items), self.batch)
        return (full if self.batch >= world() else 0) + (not self.drop_last and rest >= world())

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on."""
        rng = np.random.default_rng((self.seed, epoch))
        n = len(self.items)
        order = rng.integers(0, n, n) if self.replace else rng.permutation(n)
        chunks = [share(range(at, min(at + self.batch, n))) for at in range(0, n, self.batch)][start : len(self)]

        def loaded(place: int) -> Any:
            return self.load(self.items[order[place]], np.random.default_rng((self.seed, epoch, place)))

        stream = ahead(loaded, (place for chunk in chunks for place in chunk), depth=2 * self.batch)
        try:
            for chunk in chunks:
                made = list(islice(stream, len(chunk)))
                yield tuple(map(np.stack, zip(*made, strict=True))) if isinstance(made[0], tuple) else np.stack(made)
        finally:
            stream.close()  # type: ignore[attr-defined]


class Stream:
    """Batches of epoch after epoch. (epoch, index) is the place of the next one, taken counts all that were given."""

    def __init__(self, batches: Callable[[int], Iterable[Any]]):
        self._batches = batches
        self.go_to(0, 0, 0)

    def go_to(self, epoch: int, index: int, taken: int) -> None:
        self.epoch, self.index, self.taken = epoch, index, taken
        self._source: Iterator[Any] | None = None
        self._waiting: list[Any] = []  # one batch, read ahead so that the end of an epoch is known when it comes

    def take(self) -> Any:
        if self._source is None:
            self._open()
        batch = self._waiting.pop()
        self.index += 1
        self.taken += 1
        self._fetch()
        if not self._waiting:
            self.go_to(self.epoch + 1, 0, self.taken)
        return batch

    def _open(self) -> None:
        if isinstance(self._batches, Shuffled):
            self._source = iter(self._batches(self.epoch, self.index))
        else:
            self._source = islice(self._batches(self.epoch), self.index, None)
        self._fetch()
        if not self._waiting:
            raise WrongInput(
                f"there is no batch {self.index} in epoch {self.epoch}; training needs at least one picture."
            )

    def _fetch(self) -> None:
        assert self._source is not None
        self._waiting.extend(islice(self._source, 1))

    def close(self) -> None:
        """End the threads behind the batches."""
        if isinstance(self._batches, Shuffled) and self._source is not None:
            self._source.close()  # type: ignore[attr-defined]
