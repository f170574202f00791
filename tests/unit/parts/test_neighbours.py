"""Nearest neighbours against all distances in float64."""

import numpy as np
import pytest

from anomalens.errors import WrongInput
from anomalens.parts import neighbours
from anomalens.parts.grids import average_pool, resize_features, rows_of
from anomalens.parts.neighbours import Bank, Sketch
from anomalens.parts.patches import embed


def brute(queries, bank, k=1):
    bank = bank.astype(float)
    every = np.stack([np.linalg.norm(bank - query, axis=1) for query in queries])
    order = np.argsort(every, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(every, order, 1), order


def mixture(n, d, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = spread * np.random.default_rng(99).normal(size=(20, d))
    steps = rng.normal(size=(n, d)) * np.geomspace(1, 0.01, d)
    return (centres[rng.integers(0, 20, n)] + steps).astype(np.float32)


@pytest.mark.parametrize(("m", "d", "k"), [(1, 1, 1), (40, 7, 1), (40, 7, 40), (1200, 20, 1), (1200, 20, 5)])
def test_exact_search_equals_all_distances(m, d, k):
    bank, queries = mixture(m, d), mixture(70, d, seed=1)
    distances, rows = Bank(bank).nearest(queries, k)
    wanted, order = brute(queries, bank, k)
    np.testing.assert_allclose(distances, wanted, rtol=1e-6)
    np.testing.assert_array_equal(rows, order)


@pytest.mark.parametrize("k", [1, 3])
def test_close_neighbours_far_from_the_centre_keep_their_digits(k):
    bank = mixture(700, 30, spread=3000.0)
    queries = bank[::9] + np.float32(0.01) * mixture(len(bank[::9]), 30, seed=4)
    distances, rows = Bank(bank).nearest(queries, k)
    wanted, order = brute(queries, bank, k)
    np.testing.assert_allclose(distances, wanted, rtol=1e-6)
    np.testing.assert_array_equal(rows, order)


@pytest.mark.parametrize("mode", ["exact", "pruned"])
def test_members_have_distance_zero_and_duplicates_give_the_first(mode):
    bank = mixture(600, 24)
    distances, rows = Bank(np.concatenate([bank, bank]), mode, components=20).nearest(bank)
    assert not distances.any()
    np.testing.assert_array_equal(rows[:, 0], np.arange(600))


def test_pruned_distances_are_true_distances_never_below_the_nearest():
    bank, queries = mixture(3000, 40), mixture(500, 40, seed=1)
    search = Bank(bank, "pruned", components=30, share=0.2)
    assert search.mode == "pruned"
    distances, rows = search.nearest(queries)
    wanted, order = brute(queries, bank)
    np.testing.assert_allclose(distances, np.linalg.norm(queries - bank[rows[:, 0]], axis=1)[:, None], rtol=1e-5)
    assert (distances >= wanted * (1 - 1e-6)).all()
    assert 0.5 < (rows == order).mean() < 1  # it is worth its name, and the next test has something to verify
    np.testing.assert_array_equal(search.nearest(queries, exact=True)[1], order)
    np.testing.assert_array_equal(search.nearest(queries, 2)[1], brute(queries, bank, 2)[1])


def test_small_banks_are_searched_exactly_in_every_mode():
    bank, queries = mixture(300, 6), mixture(20, 6, seed=2)
    search = Bank(bank, "pruned")
    assert search.mode == "exact"  # too small to gain
    np.testing.assert_allclose(search.nearest(queries)[0], brute(queries, bank)[0], rtol=1e-6)


def test_many_queries_are_shared_between_cores(monkeypatch):
    bank, queries = mixture(900, 12), mixture(2500, 12, seed=3)
    alone = Bank(bank, "pruned").nearest(queries)
    monkeypatch.setattr(neighbours, "cores", lambda: 3)
    together = Bank(bank, "pruned").nearest(queries)
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-6)
    np.testing.assert_array_equal(together[1], alone[1])


@pytest.mark.parametrize("mode", ["exact", "pruned"])
def test_tensors_give_the_same_answers(mode):
    torch = pytest.importorskip("torch")
    bank, queries = mixture(1500, 24), mixture(300, 24, seed=1)
    here = Bank(bank, mode, components=8)
    there = Bank(torch.from_numpy(bank), mode, components=8)
    for k in (1, 3):
        distances, rows = there.nearest(torch.from_numpy(queries), k)
        np.testing.assert_allclose(distances.numpy(), here.nearest(queries, k)[0], rtol=1e-6)
        np.testing.assert_array_equal(rows.numpy(), here.nearest(queries, k)[1])


def test_the_result_of_a_query_does_not_depend_on_its_batch(monkeypatch):
    bank, queries = mixture(1500, 24), mixture(200, 24, seed=1)
    search = Bank(bank, "pruned", components=8)
    together = search.nearest(queries)[1]
    monkeypatch.setattr(neighbours, "DEVICE_BLOCK", 64)
    monkeypatch.setattr(neighbours, "BLOCK", 32)
    np.testing.assert_array_equal(search.nearest(queries)[1], together)


def test_a_sketch_never_stretches_a_distance():
    x, y = mixture(400, 30), mixture(400, 30, seed=3)
    sketch = Sketch(x, 6)
    (a, _), (b, squares) = sketch(x), sketch(y)
    assert a.shape == (400, 7)
    true = np.linalg.norm(x - y, axis=1)
    assert (np.linalg.norm(a - b, axis=1) <= true * (1 + 1e-5)).all()
    assert np.linalg.norm(a - b, axis=1).mean() > 0.5 * true.mean()
    np.testing.assert_allclose(squares, ((y - x.mean(axis=0)) ** 2).sum(axis=1), rtol=1e-4)


def test_wrong_input_is_refused():
    bank = np.zeros((3, 2), np.float32)
    for make in (
        lambda: Bank(np.zeros((0, 2))),
        lambda: Bank(np.zeros((3, 2, 1))),
        lambda: Bank(np.array([[0.0, np.inf]])),
        lambda: Bank(bank, "fast"),
        lambda: Bank(bank, share=0.0),
        lambda: Bank(bank).nearest(np.zeros((1, 2)), k=4),
        lambda: Bank(bank).nearest(np.zeros((1, 2)), k=0),
        lambda: Bank(bank).nearest(np.zeros((1, 3))),
        lambda: Bank(bank).nearest(np.zeros((0, 2))),
        lambda: Bank(bank).nearest(np.full((1, 2), np.nan)),
        lambda: embed([]),
        lambda: embed([np.zeros((1, 2, 4, 4)), np.zeros((2, 2, 4, 4))]),
    ):
        with pytest.raises(WrongInput):
            make()


@pytest.mark.parametrize(("pool", "count_padding"), [(1, True), (3, True), (3, False), (2, True), (5, False)])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_embedding_equals_pooling_resizing_and_stacking(pool, count_padding, kind):
    rng = np.random.default_rng(0)
    features = [rng.normal(size=s).astype(np.float32) for s in ((2, 5, 8, 12), (2, 7, 4, 6), (2, 3, 3, 5))]
    grids = [resize_features(average_pool(f, pool, count_padding), (8, 12)) for f in features]
    wanted = np.concatenate([rows_of(g) for g in grids], axis=1)
    if kind == "torch":
        torch = pytest.importorskip("torch")
        features = [torch.from_numpy(f) for f in features]
    np.testing.assert_allclose(np.asarray(embed(features, pool, count_padding)), wanted, atol=1e-6)
