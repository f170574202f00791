"""Coresets by greedy k-centre: the bank of N vectors shrinks to those that cover the others best.

Greedy k-centre (Gonzalez 1985) picks, again and again, the vector farthest from everything picked so far. The picks
here are exactly those of the plain loop, with most of its work left out:

- Lazy. A distance to the nearest pick only shrinks, so an old value is an upper bound. Only the vectors with the
  largest old values are brought up to date, and each only until it drops below the others.
- Blocked. A block of exact leaders is picked from by itself as long as its best is not below any bound outside it.
- Pruned. Picks that cannot be nearer than the present nearest are sorted out by a product of short codes
  (`neighbours.Sketch`, a lower bound); what is left is measured from the differences, free of cancellation.

Letters: N vectors, D channels. Ties go to the lowest index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device

from ..errors import OutOfMemory, WrongInput
from .grids import Array, like, to_numpy
from .neighbours import Bank, Sketch, as_rows, blocks, finite
from .threads import one_blas_thread

CODE = 96  # numbers of a code: its coordinates and the constant 1
HOT = 8192  # vectors brought up to date in one round
LEADERS = 1024  # vectors picked from between two rounds
ROWS, PICKS = 512, 256  # one product of codes
SLACK = 1e-5  # of |x|^2 + |y|^2: safely above the rounding of a product of codes


@dataclass(frozen=True)
class Coreset:
    """indices: (count,) int64 in the order of selection. radius: largest distance of any vector to its nearest pick."""

    indices: np.ndarray
    radius: float


@one_blas_thread()
def greedy(
    vectors: Array,
    count: int,
    *,
    start: int | None = None,
    first_distances: Array | None = None,
    seed: int = 0,
) -> Coreset:
    """Pick `count` of the vectors, each the farthest from those before it.

    Args:
        vectors: (N, D) floating point, numpy or torch; a tensor on an accelerator is worked on there.
        count: 1..N.
        start: index of the first pick; None draws it with `seed`.
        first_distances: (N,) distances to begin with instead of a first pick, as in the PatchCore code; see
            `mean_distances` and `distance_norms`. They decide the selection but do not count for the radius.

    Raises:
        WrongInput: vectors are not a finite matrix, count or start is out of range, first_distances has another
            length, or both start and first_distances are given.

    Source:
        Gonzalez 1985, https://doi.org/10.1016/0304-3975(85)90224-5
    """
    vectors = finite(as_rows(vectors, "greedy"), "greedy")
    n = vectors.shape[0]
    if not 1 <= count <= n:
        raise WrongInput(f"greedy was asked for {count} of {n} vectors; ask for at least 1 and at most all.")
    if start is not None and first_distances is not None:
        raise WrongInput("greedy got both start and first_distances; give the one that defines the first pick.")
    if start is not None and not 0 <= start < n:
        raise WrongInput(f"greedy got start = {start} for {n} vectors; give an index from 0 to {n - 1}.")
    if not isinstance(vectors, np.ndarray):
        if vectors.device.type != "cpu":
            return _greedy_on_device(vectors, count, start, first_distances, seed)
        vectors = to_numpy(vectors)
    search = _Search(vectors, count)
    if first_distances is None:
        search.pick([int(np.random.default_rng(seed).integers(n)) if start is None else start])
        search.measure_first()
        search.run()
        return Coreset(search.picks, search.radius())
    search.nearest = _squared(first_distances, n)
    search.run()
    search.measure_first()  # forgets first_distances
    return Coreset(search.picks, search.radius())


@one_blas_thread()
def extend(bank: Array, vectors: Array, radius: float, count: int | None = None) -> Coreset:
    """Which of some new vectors a finished bank needs besides its own, so that it covers them too.

    The bank is not touched and its old vectors are not needed. Greedy goes on from the distances to the bank until all
    new vectors lie within `radius` (the coreset's own, to keep its promise) or `count` of them are picked.

    Args:
        bank: (M, D). vectors: (N, D) new ones.

    Returns:
        indices into `vectors`, possibly none, and the largest distance of a new vector to the extended bank.

    Raises:
        WrongInput: see `greedy`; or radius is negative.
    """
    vectors = to_numpy(finite(as_rows(vectors, "extend"), "extend"))
    if radius < 0:
        raise WrongInput(f"extend got the radius {radius}; give the coverage radius of the bank, at least 0.")
    distances, _ = Bank(to_numpy(bank)).nearest(vectors)
    search = _Search(vectors, len(vectors) if count is None else min(count, len(vectors)))
    search.nearest = distances[:, 0] ** 2
    search.run(until=radius)
    return Coreset(search.picks[: search.picked], search.radius())


def mean_distances(vectors: Array, starts: Array) -> np.ndarray:
    """(N,) mean distance to some start vectors (S, D): `first_distances` of PatchCore's approximate selection."""
    vectors, starts = to_numpy(vectors), to_numpy(starts)
    total = np.zeros(len(vectors))
    for start in starts:
        total += np.sqrt(_direct(vectors, start))
    return (total / len(starts)).astype(np.float32)


def distance_norms(vectors: Array) -> np.ndarray:
    """(N,) length of each row of the matrix of all distances: `first_distances` of PatchCore's exact selection.

    No such matrix is needed: sum_j |x_i - x_j|^2 = N |x_i - m|^2 + sum_j |x_j - m|^2 with the mean m.
    """
    vectors = to_numpy(vectors)
    spread = _direct(vectors, vectors.mean(axis=0, dtype=np.float64))
    return np.sqrt(len(vectors) * spread + spread.sum())


def random_projection(channels: int, components: int = 128, seed: int = 0) -> np.ndarray:
    """(components, channels) float32, uniform in +-1 / sqrt(channels): what a bias-free linear layer starts from.

    `greedy(vectors @ matrix.T, ...)` is PatchCore's approximate selection.
    """
    limit = channels**-0.5
    return np.random.default_rng(seed).uniform(-limit, limit, (components, channels)).astype(np.float32)


class Streamed:
    """A coreset of vectors that arrive in chunks and do not fit the memory together (merge and reduce).

    Vectors collect in a buffer; a full buffer is reduced to its greedy coreset of `keep` rows. As long as nothing was
    reduced the result is the one-shot `greedy`. After a reduction each vector is covered through a chain of kept ones,
    so the radius given is the sum over all stages: an upper bound, not the true value.

    Args:
        channels: D.
        memory: limit in bytes for buffer and selection together.
        keep: rows that survive a reduction; a quarter of the buffer unless told.

    Raises:
        OutOfMemory: the limit holds no useful buffer, or less than `keep` needs.
    """

    def __init__(self, channels: int, memory: int, keep: int | None = None, seed: int = 0):
        fixed, per_row = self._bytes(channels)
        self.capacity = max(0, int((memory - fixed) // per_row))
        self.keep = max(1, self.capacity // 4) if keep is None else keep
        if self.keep < 1 or 2 * self.keep > self.capacity:
            least = self.least_memory(channels, max(self.keep, 64))
            raise OutOfMemory(
                f"a memory limit of {memory / 1e6:.3g} MB cannot hold the {2 * max(self.keep, 1)} vectors of {channels} "
                f"channels that a coreset starts from; allow at least {math.ceil(least / 1e6)}MB."
            )
        self.seed = seed
        self.seen = 0  # vectors added so far
        self.radius = 0.0  # of the reductions so far
        self._buffer = np.empty((self.capacity, channels), np.float32)
        self._filled = 0

    @classmethod
    def least_memory(cls, channels: int, keep: int) -> int:
        """Bytes needed to keep so many vectors."""
        fixed, per_row = cls._bytes(channels)
        return fixed + 2 * keep * per_row

    @staticmethod
    def _bytes(channels: int) -> tuple[int, int]:
        """What a selection needs whatever N is (leaders in float64 and their distances, blocks, the sample of the
        sketch), and per buffered row: itself, half a copy, codes of vectors and picks, lengths and bookkeeping."""
        fixed = 4 * LEADERS * (4 * channels + 9 * LEADERS) + 4 * channels * (8 * ROWS + 3 * 8192)
        return fixed, 6 * channels + 8 * (min(channels, CODE) + 1) + 64

    @property
    def held(self) -> int:
        """Vectors in the buffer: all that were added, or what reductions kept of them and what came after."""
        return self._filled

    def add(self, chunk: Array) -> None:
        """Take (n, D) more vectors, any n.

        Raises:
            WrongInput: not a finite matrix of D channels.
        """
        chunk = to_numpy(finite(as_rows(chunk, "Streamed.add"), "Streamed.add"))
        if chunk.shape[1] != self._buffer.shape[1]:
            raise WrongInput(
                f"Streamed.add got {chunk.shape[1]} channels after {self._buffer.shape[1]}; use the same features."
            )
        self.seen += len(chunk)
        while len(chunk):
            if self._filled == self.capacity:
                stage = greedy(self._buffer, self.keep, start=0)
                self._buffer[: self.keep] = self._buffer[stage.indices]
                self._filled = self.keep
                self.radius += stage.radius
            room = min(self.capacity - self._filled, len(chunk))
            self._buffer[self._filled : self._filled + room] = chunk[:room]
            self._filled += room
            chunk = chunk[room:]

    def result(self, count: int) -> tuple[np.ndarray, float]:
        """(count, D) vectors in the order of selection, and a radius within which they cover all that were added.

        The buffer stays: `add` may go on afterwards.

        Raises:
            WrongInput: more are asked for than were added. OutOfMemory: than the limit kept.
        """
        if not 1 <= count <= self.seen:
            raise WrongInput(f"Streamed was asked for {count} of {self.seen} vectors; ask for 1 to {self.seen}.")
        if count > self._filled:
            raise OutOfMemory(
                f"the memory limit left {self._filled} of {self.seen} vectors and {count} were asked for; "
                "raise the limit or `keep`, or ask for fewer."
            )
        final = greedy(self._buffer[: self._filled], count, seed=self.seed)
        return self._buffer[final.indices], self.radius + final.radius


class _Search:
    """The state of one greedy selection.

    nearest: (N,) squared distance to the nearest of the first `seen` picks, -1 for a pick itself.
    """

    def __init__(self, vectors: np.ndarray, count: int):
        n, d = vectors.shape
        self.vectors = vectors
        self.picks = np.zeros(count, np.int64)
        self.picked = 0
        self.nearest = np.full(n, np.inf, np.float32)
        self.seen = np.zeros(n, np.int32)
        # |x - y|^2 >= |code(x) - code(y)|^2 = |x|^2 + [code(x), 1] . [-2 code(y), |y|^2]
        sketch = Sketch(vectors, d if d <= 128 else CODE - 2)
        width = d + 1 if d <= 128 else CODE
        self.codes = np.ones((n, width), np.float32)
        self.squares = np.empty(n, np.float32)
        start = 0
        for part in blocks(vectors):
            stop = start + len(part)
            self.codes[start:stop, :-1], self.squares[start:stop] = sketch(part)
            start = stop
        self.squares *= np.float32(1 - SLACK)
        self.keys = np.empty((count, width), np.float32)

    def pick(self, indices: list[int]) -> None:
        stop = self.picked + len(indices)
        self.picks[self.picked : stop] = indices
        self.keys[self.picked : stop] = -2 * self.codes[indices]
        self.keys[self.picked : stop, -1] = self.squares[indices]
        self.nearest[indices] = -1
        self.picked = stop

    def measure_first(self) -> None:
        """Start from the distances to the first pick alone."""
        self.nearest = _direct(self.vectors, self.vectors[self.picks[0]])
        self.nearest[self.picks[: self.picked]] = -1
        self.seen[:] = 1

    def run(self, until: float = 0.0) -> None:
        """Pick until all are picked that were asked for, or all vectors lie within `until` > 0."""
        while self.picked < len(self.picks):
            leaders, floor, rival = self.leaders()
            if until and len(leaders) and self.nearest[leaders].max() <= until**2:
                return
            self.pick_among(leaders, floor, rival, until)

    def radius(self) -> float:
        """Largest distance to the nearest pick."""
        while True:
            leaders, _, _ = self.leaders()
            if len(leaders) or self.picked == len(self.nearest):
                return float(np.sqrt(self.nearest[leaders].max(initial=0.0)))

    def leaders(self) -> tuple[np.ndarray, np.float32, int]:
        """Up to LEADERS vectors, ascending, whose distances are up to date and not below those of all others.

        Returns them (none when the largest bounds all turned out too high), the largest bound outside, and the lowest
        index outside that has just this bound.
        """
        n = len(self.nearest)
        hot_count = min(HOT, n)
        floor = max(np.partition(self.nearest, n - hot_count)[n - hot_count], np.float32(0))
        hot = np.flatnonzero(self.nearest >= floor)
        self.update(hot, floor)
        hot = hot[self.nearest[hot] >= floor]
        if len(hot) <= LEADERS:
            return hot, floor, n
        order = hot[np.argsort(-self.nearest[hot], kind="stable")]
        floor = self.nearest[order[LEADERS]]
        return np.sort(order[:LEADERS]), floor, int(order[LEADERS])

    def pick_among(self, leaders: np.ndarray, floor: np.float32, rival: int, until: float) -> None:
        """Greedy inside the block, as long as no vector outside can be farther (or as far, with a lower index)."""
        block = self.vectors[leaders].astype(np.float64)
        lengths = np.einsum("ij,ij->i", block, block)
        # float64 against cancellation, float32 so that equal distances compare equal
        squared = (lengths[:, None] + lengths - 2 * (block @ block.T)).astype(np.float32)
        nearest = self.nearest[leaders]
        chosen: list[int] = []
        while len(leaders) and self.picked + len(chosen) < len(self.picks):
            best = int(nearest.argmax())
            value = nearest[best]
            if value < floor or (value == floor and leaders[best] > rival) or (until and value <= until**2):
                break
            chosen.append(best)
            np.minimum(nearest, squared[best], out=nearest)
            nearest[chosen] = -1
        self.pick(leaders[chosen].tolist())
        self.nearest[leaders] = nearest
        self.seen[leaders] = self.picked

    def update(self, hot: np.ndarray, floor: np.float32) -> None:
        """Bring `hot` vectors up to date, or below `floor`."""
        if not len(hot):
            return
        for start in range(int(self.seen[hot].min()), self.picked, PICKS):
            stop = min(start + PICKS, self.picked)
            waiting = hot[(self.seen[hot] < stop) & (self.nearest[hot] >= floor)]
            for first in range(0, len(waiting), ROWS):
                self.compare(waiting[first : first + ROWS], start, stop)
            self.seen[waiting] = stop

    def compare(self, rows: np.ndarray, start: int, stop: int) -> None:
        """Lower the nearest distances of `rows` by the picks start..stop."""
        bound = self.codes[rows] @ self.keys[start:stop].T
        # The most promising pick of each row first: it lowers the limit for the others.
        best = bound.argmin(axis=1)
        open_ = np.flatnonzero(bound[np.arange(len(rows)), best] < self.nearest[rows] - self.squares[rows])
        rows, bound, best = rows[open_], bound[open_], best[open_]
        nearest = np.minimum(self.nearest[rows], self.between(rows, self.picks[start + best]))
        bound[np.arange(len(rows)), best] = np.inf
        row, pick = np.divmod(np.flatnonzero(bound < (nearest - self.squares[rows])[:, None]), stop - start)
        np.minimum.at(nearest, row, self.between(rows[row], self.picks[start + pick]))
        self.nearest[rows] = nearest

    def between(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n,) squared distances of pairs, from the differences."""
        squared = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), ROWS):
            here = slice(start, start + ROWS)
            difference = self.vectors[rows[here]]
            difference -= self.vectors[others[here]]
            squared[here] = np.einsum("ij,ij->i", difference, difference)
        return squared


def _greedy_on_device(
    vectors: Array, count: int, start: int | None, first_distances: Array | None, seed: int
) -> Coreset:
    """The plain loop, one pass over the vectors per pick: on an accelerator its bandwidth carries it."""
    xp = array_namespace(vectors)
    n = vectors.shape[0]
    index = xp.arange(n, device=device(vectors))
    picks = xp.zeros(count, dtype=xp.int64, device=device(vectors))
    covered = xp.full(n, xp.inf, dtype=vectors.dtype, device=device(vectors))
    nearest = covered
    if first_distances is not None:
        nearest = like(_squared(first_distances, n), vectors)
    elif start is None:
        start = int(np.random.default_rng(seed).integers(n))
    for k in range(count):
        farthest = xp.where(nearest == xp.max(nearest), index, n)
        best = xp.min(farthest) if k or start is None else index[start]  # an argmax that takes the lowest of ties
        difference = vectors - vectors[best]
        squared = xp.vecdot(difference, difference)
        covered = xp.minimum(covered, squared)
        nearest = xp.minimum(nearest, squared)
        nearest[best] = -1
        picks[k] = best
    return Coreset(to_numpy(picks), float(xp.max(covered)) ** 0.5)


def _direct(vectors: np.ndarray, point: np.ndarray) -> np.ndarray:
    """(N,) squared distances to one point, in the finer type of the two."""
    parts = [part - point for part in blocks(vectors)]
    return np.concatenate([np.einsum("ij,ij->i", part, part) for part in parts])


def _squared(first_distances: Array, n: int) -> np.ndarray:
    distances = to_numpy(first_distances)
    if distances.shape != (n,):
        raise WrongInput(f"first_distances has the shape {distances.shape} for {n} vectors; give one per vector.")
    return (distances.astype(np.float64) ** 2).astype(np.float32)
