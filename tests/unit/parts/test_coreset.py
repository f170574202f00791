"""Greedy coresets against the plain loop in float64, and against the index lists of the published codes."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from anomalens.errors import OutOfMemory, WrongInput
from anomalens.parts import coreset
from anomalens.parts.coreset import (
    Streamed,
    _greedy_on_device,
    distance_norms,
    extend,
    greedy,
    mean_distances,
    random_projection,
)
from anomalens.parts.patches import embed

PARITY = Path(os.environ.get("ANOMALENS_PARITY", Path(__file__).parents[3] / "../shared/parity")) / "patchcore"


def plain(x, count, start=None, first=None):
    """Indices and coverage radius by the loop of the definition, in float64."""
    x = np.asarray(x, float)
    nearest = np.full(len(x), np.inf) if first is None else np.asarray(first, float).copy()
    covered = np.full(len(x), np.inf)
    picks = []
    for _ in range(count):
        pick = start if start is not None and not picks else int(nearest.argmax())
        away = np.sqrt(((x - x[pick]) ** 2).sum(axis=1))
        covered, nearest = np.minimum(covered, away), np.minimum(nearest, away)
        picks.append(pick)
        nearest[picks] = -1
    return np.array(picks), covered.max()


def mixture(n, d, seed=0, spread=5.0):
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(8, d))
    return (centres[rng.integers(0, 8, n)] + rng.normal(size=(n, d))).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that a thousand vectors pass through every branch of the search."""
    for name, value in {"HOT": 64, "LEADERS": 16, "ROWS": 24, "PICKS": 32}.items():
        monkeypatch.setattr(coreset, name, value)


@pytest.mark.parametrize(("n", "d", "count"), [(1, 3, 1), (7, 1, 7), (600, 5, 60), (1500, 16, 150), (900, 160, 300)])
@pytest.mark.parametrize("blocks", ["as shipped", "small"])
def test_picks_and_radius_equal_the_plain_loop(n, d, count, blocks, request):
    if blocks == "small":
        request.getfixturevalue("small_blocks")
    x = mixture(n, d)
    found = greedy(x, count, start=n // 3)
    picks, radius = plain(x, count, n // 3)
    np.testing.assert_array_equal(found.indices, picks)
    assert found.radius == pytest.approx(radius, rel=1e-5, abs=1e-7)


def test_far_clusters_do_not_lose_digits(small_blocks):
    x = mixture(800, 140, spread=1000.0)  # |x|^2 is 1e5 times the squared distances that decide
    x *= np.float32(0.01)
    picks, radius = plain(x, 120, 0)
    found = greedy(x, 120, start=0)
    np.testing.assert_array_equal(found.indices, picks)
    assert found.radius == pytest.approx(radius, rel=1e-5)


def test_an_offset_of_all_vectors_does_not_lose_digits():
    x = np.round(mixture(500, 12) * 64) / 64 + np.float32(4096)
    np.testing.assert_array_equal(greedy(x, 80, start=3).indices, plain(x, 80, 3)[0])


@pytest.mark.parametrize("count", [5, 40, 120])
def test_ties_and_duplicates_go_to_the_lowest_index(count, small_blocks):
    grid = np.stack(np.meshgrid(range(8), range(8)), -1).reshape(-1, 2).astype(np.float32)
    x = np.concatenate([grid, grid])  # every distance occurs many times, every vector twice
    found = greedy(x, count, start=0)
    np.testing.assert_array_equal(found.indices, plain(x, count, 0)[0])
    assert len(set(found.indices.tolist())) == count


def test_first_distances_decide_the_selection_but_not_the_radius(small_blocks):
    x = mixture(700, 9)
    starts = x[[5, 77, 300]]
    first = mean_distances(x, starts)
    np.testing.assert_allclose(
        first, np.mean([np.linalg.norm(x.astype(float) - s, axis=1) for s in starts], axis=0), rtol=1e-6
    )
    picks, radius = plain(x, 50, first=first)
    found = greedy(x, 50, first_distances=first)
    np.testing.assert_array_equal(found.indices, picks)
    assert found.radius == pytest.approx(radius, rel=1e-5)


def test_distance_norms_are_the_row_norms_of_all_distances():
    x = mixture(200, 6)
    every = np.linalg.norm(x[:, None].astype(float) - x[None], axis=2)
    np.testing.assert_allclose(distance_norms(x), np.linalg.norm(every, axis=1), rtol=1e-9)


def test_the_start_is_drawn_with_the_seed():
    x = mixture(300, 4)
    assert np.array_equal(greedy(x, 10, seed=3).indices, greedy(x, 10, seed=3).indices)
    assert len({int(greedy(x, 1, seed=s).indices[0]) for s in range(5)}) > 1


def test_random_projection_is_uniform_within_its_limit():
    matrix = random_projection(400, 32, seed=1)
    assert matrix.shape == (32, 400)
    assert abs(matrix).max() <= 0.05
    assert matrix.std() == pytest.approx(0.05 / np.sqrt(3), rel=0.03)


def test_tensors_give_the_same_picks_on_host_and_device_paths():
    torch = pytest.importorskip("torch")
    x = mixture(400, 10)
    picks = greedy(x, 40, start=2)
    tensor = greedy(torch.from_numpy(x), 40, start=2)
    np.testing.assert_array_equal(tensor.indices, picks.indices)
    device = _greedy_on_device(torch.from_numpy(x), 40, 2, None, 0)
    np.testing.assert_array_equal(device.indices, picks.indices)
    assert device.radius == pytest.approx(picks.radius, rel=1e-5)
    first = mean_distances(x, x[:3])
    np.testing.assert_array_equal(
        _greedy_on_device(torch.from_numpy(x), 40, None, first, 0).indices, greedy(x, 40, first_distances=first).indices
    )


@pytest.mark.parametrize(
    ("x", "count", "settings"),
    [
        (np.zeros((0, 3)), 1, {}),
        (np.zeros(3), 1, {}),
        (np.zeros((3, 2)), 4, {}),
        (np.zeros((3, 2)), 0, {}),
        (np.array([[0.0, np.nan]]), 1, {}),
        (np.array([[0.0, np.inf], [1.0, -np.inf]]), 1, {}),
        (np.zeros((3, 2)), 1, {"start": 3}),
        (np.zeros((3, 2)), 1, {"first_distances": np.zeros(2)}),
        (np.zeros((3, 2)), 1, {"start": 0, "first_distances": np.zeros(3)}),
    ],
)
def test_wrong_input_is_refused(x, count, settings):
    with pytest.raises(WrongInput):
        greedy(x, count, **settings)


def test_extend_picks_only_what_the_bank_does_not_cover():
    old, new = mixture(500, 8, seed=1), mixture(300, 8, seed=2)
    new[250:] += 40
    first = greedy(old, 50, start=0)
    bank = old[first.indices]
    more = extend(bank, new, first.radius)
    assert 0 < len(more.indices) < 300
    whole = np.concatenate([bank, new[more.indices]]).astype(float)
    away = np.linalg.norm(new[:, None].astype(float) - whole[None], axis=2).min(axis=1).max()
    assert away <= first.radius
    assert more.radius == pytest.approx(away, rel=1e-5)
    fewer = np.concatenate([bank, new[more.indices[:-1]]]).astype(float)
    assert np.linalg.norm(new[:, None].astype(float) - fewer[None], axis=2).min(axis=1).max() > first.radius
    assert len(extend(whole.astype(np.float32), new, first.radius).indices) == 0
    assert len(extend(bank, new, 0.0, count=7).indices) == 7
    with pytest.raises(WrongInput):
        extend(bank, new, -1.0)


D = 4
MEMORY = coreset.Streamed.least_memory(D, keep=1500)


def test_a_stream_that_fits_equals_the_one_shot_selection():
    x = mixture(2000, D)
    stream = Streamed(D, MEMORY, seed=5)
    for chunk in np.array_split(x, 7):
        stream.add(chunk)
    vectors, radius = stream.result(150)
    once = greedy(x, 150, seed=5)
    np.testing.assert_array_equal(vectors, x[once.indices])
    assert radius == once.radius


def test_a_reduced_stream_keeps_its_promise_and_goes_on():
    stream = Streamed(D, MEMORY, keep=300)
    chunks = [mixture(700, D, seed=s) for s in range(9)]
    for chunk in chunks:
        stream.add(chunk)
    assert stream.seen == 6300 > stream.capacity
    vectors, radius = stream.result(100)
    every = np.concatenate(chunks)
    true = max(np.linalg.norm(part[:, None] - vectors[None], axis=2).min(axis=1).max() for part in chunks)
    assert true <= radius
    assert {tuple(v) for v in vectors} <= {tuple(v) for v in every}
    stream.add(chunks[0])
    assert stream.seen == 7000
    with pytest.raises(OutOfMemory):
        stream.result(stream.held + 1)
    with pytest.raises(WrongInput):
        stream.result(7001)
    with pytest.raises(WrongInput):
        stream.add(np.zeros((3, D + 1)))


def test_memory_stays_flat_and_below_the_limit(small_blocks):
    peaks = []
    for chunks in (3, 9):
        memory = Streamed.least_memory(16, keep=700)
        tracemalloc.start()
        stream = Streamed(16, memory, keep=100)
        for seed in range(chunks):
            stream.add(mixture(1000, 16, seed))
        stream.result(50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert stream.radius > 0
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < memory + 1000 * 16 * 24  # the chunk under way is the caller's


def test_a_limit_that_holds_no_buffer_is_refused():
    with pytest.raises(OutOfMemory, match="allow at least"):
        Streamed(384, 1_000_000)


def configurations():
    path = PARITY / "golden.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@pytest.mark.skipif(not configurations(), reason="golden tensors of PatchCore are not on this machine")
@pytest.mark.parametrize("name", configurations())
def test_the_index_lists_of_both_published_codes(name):
    from safetensors.numpy import load_file

    golden = {k[len(name) + 1 :]: v for k, v in load_file(PARITY / "golden.safetensors").items() if k.startswith(name)}
    settings = configurations()[name]
    count = settings["n_bank"]
    features = [golden[key] for key in sorted(golden) if key.startswith("feat_train.")]

    reduced = golden["embed_train"] @ golden["projection"].T
    starts = reduced[golden["start_points"]]
    approx = greedy(reduced, count, first_distances=mean_distances(reduced, starts))
    np.testing.assert_array_equal(approx.indices, golden["coreset_indices_approx"])
    exact = greedy(reduced, count, first_distances=distance_norms(reduced))
    np.testing.assert_array_equal(exact.indices, golden["coreset_indices_exact"])

    rows = embed(features)
    head = golden["al.embed_train_head"]
    np.testing.assert_allclose(rows[: len(head)], head, atol=1e-6)
    wanted = golden["al.coreset_indices"]
    other = greedy(rows @ golden["al.projection"].T, len(wanted), start=settings["al_start_index"])
    np.testing.assert_array_equal(other.indices, wanted)
