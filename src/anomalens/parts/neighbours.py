"""Nearest neighbours of many queries in a bank of rows, by blocked matrix products.

Letters: Q queries, M bank rows, D channels. Distances are Euclidean. A block of the product fits the second level
cache; only the smallest entries of each block are kept, so nothing of size Q x M ever exists. The winners' distances
are computed again from the difference of the two vectors, because |x|^2 + |y|^2 - 2xy loses digits in float32.

The pruned search leaves out nine tenths of the pairs (the bank is split into cells, a query visits only the cells near
it) and five sixths of the channels (vectors are compared by short codes); the two best rows found are then measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
from array_api_compat import array_namespace, device

from ..errors import WrongInput
from .grids import Array, like, to_numpy
from .threads import cores, one_blas_thread

Mode = Literal["exact", "pruned"]
Result = TypeVar("Result")

BLOCK = 512  # rows and columns of one product: 1 MiB of float32
DEVICE_BLOCK = 8192  # the same on an accelerator, and queries that visit the cells together
SMALL = 512  # banks below this are always searched exactly
CLOSE = 0.05  # below this share of |x|^2 + |y|^2 a squared distance is ranked in float64


class Sketch:
    """Few coordinates that never stretch a distance: |code(x) - code(y)| <= |x - y|.

    The leading principal directions of the rows, and as one more coordinate the length of what they leave out (the
    reverse triangle inequality in the rest of the space). With `components` >= D the code is the centred vector.

    alignment: cosine assumed between the left-out parts of two vectors: 1 gives the lower bound, about 0.5 the best
        ranking of neighbours.
    """

    def __init__(self, rows: Array, components: int, alignment: float = 1.0):
        sample = to_numpy(rows[:: max(1, rows.shape[0] // 8192)]).astype(np.float32)
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.mean = like(mean, rows)
        self.basis = None
        self.scale = float(np.sqrt(alignment))
        if components < rows.shape[1]:
            self.basis = like(principal_directions(sample - mean, components), rows)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(n, D) -> codes (n, components + 1) or (n, D), and the squared lengths (n,) of the centred rows."""
        xp = array_namespace(x)
        centred = x - self.mean
        squares = xp.vecdot(centred, centred)
        if not bool(xp.isfinite(xp.sum(squares))):
            raise WrongInput("the vectors hold NaN or infinite numbers; check the network and its input.")
        if self.basis is None:
            return centred, squares
        code = centred @ self.basis
        rest = squares - xp.vecdot(code, code)
        rest = self.scale * xp.sqrt(xp.where(rest > 0, rest, xp.zeros_like(rest)))
        return xp.concat([code, rest[:, None]], axis=1), squares


class Bank:
    """Rows to search in, prepared once.

    Args:
        rows: (M, D) floating point, numpy or torch; kept as float32 where it is.
        mode: "exact" compares everything. "pruned" searches for k = 1 in a part of the pairs and channels; its
            distances are true distances to some bank row, so never below the nearest, and mostly the nearest.
        components: length of the codes of the pruned search.
        share: part of the cells that a vector like those of the bank visits in the pruned search, in (0, 1].

    Raises:
        WrongInput: rows are not a matrix of finite numbers with at least one row, or the mode or share is not known.
    """

    def __init__(self, rows: Array, mode: Mode = "exact", *, components: int = 54, share: float = 0.1):
        if mode not in ("exact", "pruned"):
            raise WrongInput(f"Bank knows the modes 'exact' and 'pruned', not {mode!r}; pick one of them.")
        if not 0 < share <= 1:
            raise WrongInput(f"Bank got share = {share}; give the part of the cells to visit, above 0 and at most 1.")
        self.rows = finite(as_rows(rows, "Bank"), "Bank")
        self.sketch = Sketch(self.rows, self.rows.shape[1])
        self.keys, self.squares = keys_of(self.rows, self.sketch)
        self.cells: _Cells | None = None
        if mode == "pruned" and self.rows.shape[0] >= SMALL:
            self.cells = _Cells(self.rows, min(components, self.rows.shape[1]), share)
        self.mode: Mode = "pruned" if self.cells else "exact"  # what really runs

    @one_blas_thread()
    def nearest(self, queries: Array, k: int = 1, *, exact: bool = False) -> tuple[Array, Array]:
        """Distances (Q, k) float32, ascending, and bank rows (Q, k) of the nearest neighbours.

        exact: compare everything, whatever the mode.

        Raises:
            WrongInput: k is not in 1..M, or the queries are not (Q, D) finite numbers with Q >= 1.
        """
        queries = self._check(queries)
        if not 1 <= k <= self.rows.shape[0]:
            raise WrongInput(f"nearest was asked for k = {k} of {self.rows.shape[0]} bank rows; use 1 <= k <= rows.")
        cells = None if exact or k > 1 else self.cells
        return _joined(
            over_cores(lambda part: self._exact(part, k) if cells is None else self._pruned(part, cells), queries)
        )

    def _exact(self, queries: Array, k: int) -> tuple[Array, Array]:
        xp = array_namespace(queries)
        found = []
        for part in blocks(queries):
            code, squares = self.sketch(part)
            code = xp.concat([code, xp.ones_like(squares)[:, None]], axis=1)
            rows = _least((code @ block.T for block in blocks(self.keys)), k)
            found.append(self._rank(part, self._correct(part, squares, rows)))
        return _joined(found)

    def _pruned(self, queries: Array, cells: _Cells) -> tuple[Array, Array]:
        found = []
        for start in range(0, queries.shape[0], DEVICE_BLOCK):
            group = queries[start : start + DEVICE_BLOCK]
            pairs = zip(blocks(group), blocks(cells.best_two(group)), strict=True)
            found += [self._rank(part, rows, 1) for part, rows in pairs]
        return _joined(found)

    def _rank(self, queries: Array, rows: Array, k: int | None = None) -> tuple[Array, Array]:
        """Distances to candidate rows (n, m), ascending, the k nearest of them."""
        xp = array_namespace(queries)
        if rows.shape[1] > 1:
            rows = xp.sort(rows, axis=1)  # so that of equal distances the lowest row comes first
        distances = xp.sqrt(self._measure(queries, rows))
        if rows.shape[1] > 1:
            order = xp.argsort(distances, axis=1, stable=True)[:, :k]
            distances, rows = _take(distances, order), _take(rows, order)
        return distances, rows

    def _measure(self, queries: Array, rows: Array) -> Array:
        """(n, m) squared distances from the differences."""
        xp = array_namespace(queries)
        columns = []
        for column in range(rows.shape[1]):
            difference = self.rows[rows[:, column]]
            difference -= queries
            columns.append(xp.vecdot(difference, difference))
        return xp.stack(columns, axis=1)

    def _correct(self, queries: Array, squares: Array, rows: Array) -> Array:
        """Rank again, in float64, the queries whose neighbours are so near that float32 products cannot tell."""
        xp = array_namespace(queries)
        squared = self._measure(queries, rows[:, :1])[:, 0]
        close = xp.nonzero(squared < CLOSE * (squares + self.squares[rows[:, 0]]))[0]
        if close.shape[0]:
            wide = xp.astype(queries[close], xp.float64)
            bank = (xp.astype(block, xp.float64) for block in blocks(self.rows))
            rows[close] = _least((xp.vecdot(b, b) - 2 * (wide @ b.T) for b in bank), rows.shape[1])
        return rows

    def _check(self, queries: Array) -> Array:
        queries = as_rows(queries, "nearest")
        if queries.shape[1] != self.rows.shape[1]:
            raise WrongInput(
                f"the queries have {queries.shape[1]} channels and the bank {self.rows.shape[1]}; use equal features."
            )
        return queries


class _Cells:
    """The bank in cells of similar codes."""

    def __init__(self, rows: Array, components: int, share: float):
        xp = array_namespace(rows)
        self.sketch = Sketch(rows, components, alignment=0.5)
        keys, _ = keys_of(rows, self.sketch)
        codes = to_numpy(keys[:, :-1]) / -2
        centres, label = k_means(codes, int(np.sqrt(len(codes) / 2)))
        order = np.argsort(label, kind="stable")
        self.rows = xp.asarray(order, device=device(rows))  # bank row of each key
        self.keys = keys[self.rows]
        self.edges = np.searchsorted(label[order], np.arange(len(centres) + 1)).tolist()
        lengths = np.einsum("ij,ij->i", centres, centres)
        ranks = lengths[:, None] - 2 * (centres @ codes.T)
        # A cell is visited when its centre is at most this much (squared) farther than the nearest centre.
        self.margin = float(np.quantile(ranks - ranks.min(axis=0), share))
        self.centres = like(np.concatenate([-2 * centres, lengths[:, None]], axis=1), rows)

    def best_two(self, queries: Array) -> Array:
        """(n, 2) bank rows: of the winners of all visited cells, the two best; twice the same if there is but one."""
        xp = array_namespace(queries)
        where = device(queries)
        code = xp.empty((queries.shape[0], self.centres.shape[1]), dtype=queries.dtype, device=where)
        code[:, -1] = 1
        start = 0
        for part in blocks(queries):
            code[start : start + part.shape[0], :-1] = self.sketch(part)[0]
            start += part.shape[0]
        ranks = self.centres @ code.T
        visited = ranks <= xp.min(ranks, axis=0) + self.margin
        first = xp.full(code.shape[0], xp.inf, dtype=code.dtype, device=where)
        second = xp.full(code.shape[0], xp.inf, dtype=code.dtype, device=where)
        first_key = xp.zeros(code.shape[0], dtype=xp.int64, device=where)
        second_key = xp.zeros(code.shape[0], dtype=xp.int64, device=where)
        for cell, (start, stop) in enumerate(pairwise(self.edges)):
            query = xp.nonzero(visited[cell, :])[0]
            if not query.shape[0]:
                continue
            rank = code[query] @ self.keys[start:stop].T
            key = xp.argmin(rank, axis=1)
            rank, key = _take(rank, key[:, None])[:, 0], key + start
            # The loser of winner against first goes on to second.
            best, best_key = first[query], first_key[query]
            won = rank < best
            first[query], first_key[query] = xp.where(won, rank, best), xp.where(won, key, best_key)
            lost, lost_key = xp.where(won, best, rank), xp.where(won, best_key, key)
            seconds = lost < second[query]
            place = query[seconds]
            second[place], second_key[place] = lost[seconds], lost_key[seconds]
        second_key = xp.where(xp.isfinite(second), second_key, first_key)
        return xp.stack([self.rows[first_key], self.rows[second_key]], axis=1)


def keys_of(rows: Array, sketch: Sketch) -> tuple[Array, Array]:
    """The bank's side of |x - y|^2 = |x|^2 + [code(x), 1] . [-2 code(y), |y|^2]: (M, width + 1), and |y|^2 (M,)."""
    xp = array_namespace(rows)
    parts = [sketch(part) for part in blocks(rows)]
    keys = [xp.concat([-2 * code, squares[:, None]], axis=1) for code, squares in parts]
    return xp.concat(keys, axis=0), xp.concat([squares for _, squares in parts], axis=0)


def k_means(x: np.ndarray, clusters: int, rounds: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's algorithm from evenly spaced rows; (c, D) centres and (n,) labels, empty clusters left out."""
    centres = x[np.linspace(0, len(x) - 1, max(clusters, 1)).astype(int)]
    for _ in range(rounds):
        label = np.argmin(np.einsum("ij,ij->i", centres, centres) - 2 * (x @ centres.T), axis=1)
        present, label = np.unique(label, return_inverse=True)
        total = np.zeros((len(present), x.shape[1]))
        np.add.at(total, label, x)
        centres = (total / np.bincount(label)[:, None]).astype(np.float32)
    return centres, label


def over_cores(work: Callable[[Array], Result], queries: Array) -> list[Result]:
    """`work` on one share of the queries for each core, in threads: numpy lets go of the interpreter in its loops."""
    n, count = queries.shape[0], cores()
    if not isinstance(queries, np.ndarray) or count == 1 or n < 2 * BLOCK:
        return [work(queries)]
    share = -(-n // count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, (queries[start : start + share] for start in range(0, n, share))))


def as_rows(x: Array, caller: str) -> Array:
    """Check that x is a matrix (n >= 1, D >= 1); return it as float32."""
    xp = array_namespace(x)
    if x.ndim != 2 or not x.shape[0] or not x.shape[1]:
        raise WrongInput(
            f"{caller} got an array of shape {tuple(x.shape)}; give (rows, channels), at least one of each."
        )
    return xp.astype(x, xp.float32, copy=False)


def finite(x: Array, caller: str) -> Array:
    """Check that x holds neither NaN nor infinite numbers."""
    xp = array_namespace(x)
    with np.errstate(invalid="ignore", over="ignore"):
        if not bool(xp.isfinite(xp.sum(x))):
            raise WrongInput(f"{caller} got NaN or infinite numbers; check the network and its input.")
    return x


def blocks(x: Array) -> Iterator[Array]:
    """Slices of rows: BLOCK on the host, DEVICE_BLOCK on an accelerator."""
    size = BLOCK if isinstance(x, np.ndarray) or x.device.type == "cpu" else DEVICE_BLOCK
    return (x[start : start + size] for start in range(0, x.shape[0], size))


def principal_directions(centred: np.ndarray, components: int) -> np.ndarray:
    """(D, components) orthonormal basis, close to the leading principal directions of (n, D) centred rows.

    Subspace iteration: its cost does not grow with D^3 as an eigenvalue decomposition does.
    """
    covariance = (centred.T @ centred).astype(np.float64)
    basis = np.random.default_rng(0).normal(size=(centred.shape[1], components))
    for _ in range(6):
        basis, _ = np.linalg.qr(covariance @ basis)
    return basis.astype(np.float32)


def _least(ranks: Iterable[Array], k: int) -> Array:
    """Columns (n, k) of the k smallest entries of each row, over blocks of columns; the first of equals for k = 1."""
    values, columns, start = [], [], 0
    for rank in ranks:
        best = _smallest(rank, k)
        values.append(_take(rank, best))
        columns.append(best + start)
        start += rank.shape[1]
    xp = array_namespace(values[0])
    value = xp.concat(values, axis=1)
    return _take(xp.concat(columns, axis=1), _smallest(value, k))


def _smallest(x: Array, k: int) -> Array:
    """(n, m) -> columns (n, min(k, m)) of the smallest entries of each row, in any order."""
    xp = array_namespace(x)
    if k == 1:
        return xp.argmin(x, axis=1)[:, None]
    if k >= x.shape[1]:
        return xp.broadcast_to(xp.arange(x.shape[1], device=device(x)), x.shape)
    if isinstance(x, np.ndarray):
        return np.argpartition(x, k - 1, axis=1)[:, :k]
    return x.topk(k, dim=1, largest=False).indices


def _joined(found: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    xp = array_namespace(found[0][0])
    return xp.concat([d for d, _ in found], axis=0), xp.concat([r for _, r in found], axis=0)


def _take(x: Array, columns: Array) -> Array:
    """x[i, columns[i, j]]."""
    xp = array_namespace(x)
    return x[xp.arange(x.shape[0], device=device(x))[:, None], columns]
