"""DFD in its parts: features, losses, lessons, selection, scale of the paths, and the switches of the ablations."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

import anomalens as al
from anomalens.backbones import get, network
from anomalens.calibrate import fit_calibrated
from anomalens.datasets.procedural import Procedural
from anomalens.detectors import dfd
from anomalens.detectors.dfd import DFD
from anomalens.errors import WrongInput
from anomalens.parts.distillation import as_input
from anomalens.parts.train import Group, Recipe, load_parameters, parameters_of, seeded, train, watching
from anomalens.types import Sample, View

torch = pytest.importorskip("torch")

SMALL = {"image_size": 64, "dim": 16, "hidden": 8, "heads": 2, "per_picture": 4, "steps": 4, "batch_size": 2}
FORM = dfd.Form(dim=16, hidden=8, heads=2, cells=8)


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Fewer drawn defects to take the scale of the paths from."""
    monkeypatch.setattr(dfd, "HELD", 4)


@pytest.fixture(scope="module")
def drawn():
    return Procedural("leather", size=64, train_count=3, good_count=2, bad_count=3)


@pytest.fixture(scope="module")
def good(drawn) -> list[Sample]:
    return drawn.train()


def make(**settings) -> DFD:
    return al.create("dfd", **{**SMALL, **settings})


def scores(detector: DFD, samples: list[Sample]) -> list[float]:
    return [p.score for p in detector.predict(samples)]


# --- features ---------------------------------------------------------------------------------------------------------


def test_patch_features_are_windows_resized_and_averaged():
    gen = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, 6, 4, 4, generator=gen, dtype=torch.float64),
        torch.randn(2, 10, 2, 2, generator=gen).double(),
    ]
    rows = []
    for x in maps:  # as the authors do: first windows, each resized to the finest grid, then averages
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
        h, w = x.shape[2:]
        windows = torch.stack([padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)], dim=2)
        large = torch.nn.functional.interpolate(windows.flatten(1, 2), (4, 4), mode="bilinear", align_corners=False)
        flat = large.permute(0, 2, 3, 1).reshape(2 * 16, -1)  # channel, then place in the window
        rows.append(np.stack([binned(row, 7) for row in flat.numpy()]))
    stacked = np.stack(rows, axis=1)
    assert np.allclose(dfd.layer_features(maps, 7), stacked)
    assert np.allclose(dfd.patch_features(maps, 7, 5), [binned(row.ravel(), 5) for row in stacked])


def binned(values: np.ndarray, count: int) -> np.ndarray:
    """Averages of `count` bins, from floor(i n / count) to ceil((i + 1) n / count)."""
    n = len(values)
    return np.array([values[i * n // count : -(-(i + 1) * n // count)].mean() for i in range(count)])


def test_the_grid_has_an_eighth_of_the_pixels(good):
    bands = make(image_size=256).bands(np.zeros((1, 3, 256, 256), np.float32))
    maps = [torch.as_tensor(m) for m in get("tiny", device="cpu")(bands[:, 0])]
    assert dfd.patch_features(maps, 16, 16).shape == (2 * 32 * 32, 16)
    mask = torch.zeros(1, 256, 256)
    mask[0, 17, 250] = 1  # a single pixel marks its cell
    cells = dfd.on_grid(mask, 32)
    assert cells.shape == (1, 32, 32)
    assert cells.nonzero().tolist() == [[0, 2, 31]]


@pytest.mark.parametrize("side", [64, 96])
def test_bands_are_what_the_settings_say(side):
    images = np.random.default_rng(0).random((2, 3, side, side), np.float32)
    low, high = make().bands(images)
    assert np.abs(low + high - images).max() <= 1e-5
    assert np.array_equal(make(frequencies="low").bands(images)[0], low)
    assert np.array_equal(make(frequencies="high").bands(images)[0], high)
    assert np.array_equal(make(frequencies="rgb").bands(images)[0], images)
    assert np.allclose(make(normalize_high="zero_mean").bands(images)[1], high + dfd.MEAN)
    assert np.array_equal(make(channel_order="bgr").bands(images)[0], low[:, ::-1])


# --- losses -----------------------------------------------------------------------------------------------------------


def test_pixel_loss_is_zero_beyond_the_margin():
    mask = torch.zeros(2, 16, 16)
    mask[0, :, :8] = 1
    scores = torch.full((2, 4, 4), 0.5)
    scores[0, :, :2] = -0.5
    scores = 10 * scores  # where cells of both kinds meet, their mixture is beyond the margin too, but for the middle
    pixel, image = dfd.perlin_losses(scores.reshape(-1, 1), mask)
    assert pixel < 0.2
    assert image < 1e-3
    even = torch.zeros(2, 16, 16)
    assert dfd.perlin_losses(torch.full((32, 1), 0.5), even)[0] == 0
    assert dfd.perlin_losses(torch.full((32, 1), -0.5), even + 1)[0] == 0
    assert dfd.perlin_losses(torch.full((32, 1), 0.1), even)[0] == pytest.approx(0.4)


def test_losses_as_written():
    gen = torch.Generator().manual_seed(1)
    scores, mask = torch.randn(2, 4, 4, generator=gen), torch.rand(2, 4, 4, generator=gen) > 0.6
    s, bad = scores.numpy(), mask.numpy()
    pixel, image = dfd.perlin_losses(scores.reshape(-1, 1), mask)
    assert float(pixel) == pytest.approx(np.maximum(0, 0.5 + s[bad]).mean() + np.maximum(0, 0.5 - s[~bad]).mean())
    assert float(image) == pytest.approx(np.mean(((1 / (1 + np.exp(s))).max(axis=(1, 2)) - 1) ** 2))
    assert float(dfd.perlin_loss(scores.reshape(-1, 1), mask)) == pytest.approx(float(pixel + image) / 2)
    rows = scores.reshape(-1, 1)
    clean, noisy = rows[:16].numpy(), rows[16:].numpy()
    expected = np.maximum(0, 0.5 - clean).mean() + np.maximum(0, 0.5 + noisy).mean()
    assert float(dfd.gaussian_loss(rows)) == pytest.approx(float(expected))


def test_without_a_defect_there_is_no_term_for_it():
    scores, empty = torch.zeros(32, 1), torch.zeros(2, 16, 16)
    pixel, image = dfd.perlin_losses(scores, empty)
    assert pixel == 0.5
    assert image == 0.25  # sigmoid(0) against y = 0
    assert dfd.similarity(torch.randn(32, 8), torch.randn(32, 8), empty) == 0


def test_the_gaussian_path_learns_to_tell_noise(good):
    bands = make(frequencies="rgb").bands(np.stack([as_input(s.image()) for s in good]))
    p = dfd.patch_features([torch.as_tensor(m) for m in get("tiny", device="cpu")(bands[0])], 64, 64)
    noise = 0.3 * float(p.std())
    with seeded(0):
        networks = dfd.new_networks(dfd.Form(dim=64, hidden=32, heads=2, cells=8), ("gaussian",))

    def loss(batch):
        return dfd.train_loss(networks, [p], [], torch.zeros(3, 64, 64), [noise * torch.randn_like(p)])

    groups = [Group(networks["gaussian"], lr=2e-4), Group(networks["adaptor"], lr=5e-4)]
    train(loss, groups, lambda epoch: range(100), Recipe(steps=100))
    with torch.no_grad(), seeded(3):
        q = networks["adaptor"](p)
        assert networks["gaussian"](q).mean() > networks["gaussian"](q + noise * torch.randn_like(q)).mean() + 0.2


def test_the_similarity_loss_pushes_only_defects_apart():
    gen = torch.Generator().manual_seed(4)
    p = torch.randn(64, 16, generator=gen) + 2
    mask = torch.zeros(1, 64, 64)
    mask[0, :16, :16] = 1
    inside = dfd.on_grid(mask, 8).flatten() > 0
    pasted = p + 0.05 * torch.randn(64, 16, generator=gen)
    pasted[inside] += torch.randn(int(inside.sum()), 16, generator=gen)
    with seeded(0):
        adaptor = dfd.new_networks(FORM)["adaptor"]

    def cosines():
        with torch.no_grad():
            return torch.nn.functional.cosine_similarity(adaptor(p), adaptor(pasted))

    before = cosines()

    def loss(batch):
        return dfd.similarity(adaptor(p), adaptor(pasted), mask)

    train(loss, adaptor, lambda epoch: range(30), Recipe(steps=30, lr=5e-3))
    assert cosines()[inside].mean() < before[inside].mean() - 0.1
    assert cosines()[~inside].min() > 0.9


def test_networks_start_as_published():
    with seeded(0):
        networks = dfd.new_networks(dfd.Form(dim=64, hidden=32, heads=4, cells=8))
    vit = networks["perlin"][3]
    assert float(vit.token.detach().abs().max()) < 1e-4
    assert float(vit.positions.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(vit.block.linear1.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(vit.block.linear1.bias.detach().abs().max()) == 0
    assert float(networks["gaussian"][0].weight.detach().std()) == pytest.approx(
        (2 / 96) ** 0.5, rel=0.1
    )  # Xavier, normal
    assert float(networks["perlin"][0].weight.detach().abs().max()) <= 1 / 8  # torch's own, uniform
    again = load_parameters(dfd.new_networks(dfd.Form(64, 32, 4, 8)), parameters_of(networks))
    assert torch.equal(again["perlin"][3].positions, vit.positions)


# --- lessons ----------------------------------------------------------------------------------------------------------


def test_copies_are_turned_and_the_same_every_time():
    picture = np.full((64, 64, 3), 200, np.uint8)
    copies = dfd.Copies(make(), [picture, picture // 2], None)
    first, again, other = copies(0), copies(0), copies(2)
    assert np.array_equal(first.normal, again.normal)
    assert np.array_equal(first.pasted, again.pasted)
    assert not np.array_equal(first.normal, other.normal)
    assert first.normal.max() == pytest.approx(200 / 255)
    assert copies(1).normal.max() == pytest.approx(100 / 255)  # the other picture
    assert np.array_equal(first.normal[:, ~first.mask], first.pasted[:, ~first.mask])
    assert first.normal.min() == 0  # black corners
    assert dfd.Copies(make(rotation_fill="reflect"), [picture], None)(0).normal.min() == pytest.approx(200 / 255)
    assert dfd.Copies(make(), [picture], "bright")(0).normal.min() == pytest.approx(200 / 255)  # the ground of a thing


def test_quarter_turns_lose_nothing():
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    seen = {dfd.Copies(make(rotation="quarter"), [picture], None)(i).normal.tobytes() for i in range(30)}
    turned = {
        np.ascontiguousarray(np.moveaxis(np.rot90(picture, k), 2, 0) / np.float32(255)).tobytes() for k in (-1, 0, 1)
    }
    assert seen == turned


def test_the_foreground_is_that_of_the_category():
    assert make().side_of("pill") == "bright"
    assert make().side_of("screw") == "dark"
    assert make().side_of("carpet") is None
    assert make(foreground="none").side_of("pill") is None
    assert make(foreground="dark").side_of("carpet") == "dark"
    picture = np.full((64, 64, 3), 20, np.uint8)
    picture[16:48, 16:48] = 220
    copies = dfd.Copies(make(normal_share=0.0), [picture], "bright")
    masks = [(copies(i).mask, copies(i).normal.mean(axis=0)) for i in range(10)]
    assert any(mask.any() for mask, _ in masks)
    assert not any((mask & (grey < 0.3)).any() for mask, grey in masks)


def test_kept_remembers_within_its_limit():
    calls = []

    def made(index: int) -> tuple[np.ndarray, ...]:
        calls.append(index)
        return (np.full(10, index, np.uint8),)

    kept = dfd.Kept(made, limit=20)
    for index in (0, 1, 2, 0, 1, 2):
        assert kept(index)[0][0] == index
    assert calls == [0, 1, 2, 2]


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", ["both", "gaussian"])
def test_discriminators_leave_the_adaptors_bias_alone(paths):
    """Batch norm takes it away again; only the similarity, which knows no batch norm, moves it."""
    gen = torch.Generator().manual_seed(6)
    used = ("perlin", "gaussian") if paths == "both" else (paths,)
    with seeded(0):
        networks = dfd.new_networks(dataclasses.replace(FORM, cells=4), used)
    rows = [[torch.randn(2 * 16, 16, generator=gen) for _ in "lh"] for _ in range(3)]
    mask = torch.zeros(2, 64, 64)
    mask[0, :20, :20] = 1
    normal, pasted, noise = rows

    def gradients(loss):
        networks.zero_grad(set_to_none=True)
        loss.backward()
        return networks["adaptor"].weight.grad, networks["adaptor"].bias.grad

    def plainly():
        q, bad = ([networks["adaptor"](p) for p in rows] for rows in (normal, pasted))
        total = sum(
            dfd.gaussian_loss(networks["gaussian"](torch.cat([c, c + e]))) for c, e in zip(q, noise, strict=True)
        )
        if paths == "both":
            for c, d in zip(q, bad, strict=True):
                total = total + dfd.perlin_loss(networks["perlin"](d), mask) + dfd.similarity(c, d, mask)
        return total

    weight, bias = gradients(dfd.train_loss(networks, normal, pasted if paths == "both" else [], mask, noise))
    expected, plain_bias = gradients(plainly())
    assert torch.allclose(weight, expected, atol=1e-6)
    if paths == "gaussian":
        assert bias is None
        assert plain_bias.abs().max() < 1e-5
    else:
        assert torch.allclose(bias, plain_bias, atol=1e-5)
        assert bias.abs().max() > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"frequencies": "low"},
        {"frequencies": "rgb", "paths": "gaussian"},
        {"paths": "perlin", "normalize_high": "zero_mean"},
        {"rotation": "quarter", "channel_order": "bgr", "foreground": "dark", "rotation_fill": "reflect"},
        {"steps": None, "epochs": 1, "limit_memory": 1},
    ],
)
def test_every_switch_learns_saves_and_predicts(settings, good, drawn, tmp_path):
    detector = make(**settings).fit(good[:2])
    al.save(detector, tmp_path / "model")
    loaded = al.load(tmp_path / "model")
    assert scores(loaded, drawn.test()) == scores(detector, drawn.test())
    assert set(detector.scale) == set(detector.used_paths)


def test_one_picture_is_enough(good, drawn):
    assert len(scores(make().fit(good[:1]), drawn.test())) == 5


def test_the_network_is_left_as_it_was_and_the_test_pictures_unread(good, drawn, monkeypatch):
    monkeypatch.setattr(dfd, "open_folder", lambda path: pytest.fail("the test folder was opened"))
    detector = make(engine="torch", device="cpu")
    images = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    net = network(detector, learn=())
    before = [m.clone() for m in net(images)]
    detector.fit(good)
    after = network(detector)(images)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(before, after, strict=True))


def test_an_interrupted_training_goes_on(good, drawn, tmp_path):
    def stop(step, total, figures):
        if step == 3:
            raise KeyboardInterrupt

    settings = {"steps": 6, "select": "pseudo"}
    whole = make(**settings).fit(good)
    with watching(folder=tmp_path), pytest.MonkeyPatch.context() as patch:
        every_step = dataclasses.replace(make(**settings).recipe("cpu", 6), checkpoint_minutes=0)
        patch.setattr(DFD, "recipe", lambda self, device, per_epoch: every_step)
        with pytest.raises(KeyboardInterrupt), watching(stop, tmp_path):
            make(**settings).fit(good)
        resumed = make(**settings).fit(good)
    assert scores(resumed, drawn.test()) == scores(whole, drawn.test())


def test_the_best_moment_on_drawn_defects(good):
    detector = make(select="pseudo", steps=5).fit(good)
    assert 1 <= detector.trained["kept"] <= 5
    assert "best on drawn defects" in detector.state()


def test_a_tenth_is_held_out_where_drawn_defects_decide(monkeypatch):
    good = Procedural("leather", size=64, train_count=11).train()
    made: list[list[bytes]] = []

    class Noted(dfd.Copies):
        def __init__(self, detector, pictures, side):
            made.append([p.tobytes() for p in pictures])
            super().__init__(detector, pictures, side)

    monkeypatch.setattr(dfd, "Copies", Noted)
    everything = [s.image().tobytes() for s in good]
    for settings, learnt, unseen in (
        ({"select": "pseudo"}, everything[1:10], [everything[0], everything[10]]),
        ({}, everything, everything),
    ):
        made.clear()
        make(steps=1, per_picture=1, **settings).fit(good)
        assert made == [learnt, unseen]


def test_training_stops_early_on_drawn_defects(good, monkeypatch):
    monkeypatch.setattr(DFD, "validation", lambda *args: iter([0.5, 0.7, *[0.6] * 20]).__next__)
    detector = make(select="pseudo", patience=3, steps=20).fit(good)
    assert (detector.trained["steps"], detector.trained["kept"]) == (5, 2)
    for select in ({}, {"select": "oracle_test", "test_folder": "labelled"}):
        with pytest.raises(WrongInput, match=r"never by test pictures: patience needs select='pseudo'"):
            make(patience=3, **select)


def test_a_choice_on_test_pictures_is_flagged(good, drawn, tmp_path, caplog):
    drawn.write(tmp_path / "leather")
    with caplog.at_level(logging.WARNING, "anomalens"):
        detector = make(select="oracle_test", test_folder=str(tmp_path / "leather")).fit(good)
    assert "too good" in caplog.text
    assert "chosen on the test pictures" in detector.state()
    with pytest.raises(WrongInput, match="go together"):
        make(select="oracle_test")
    with pytest.raises(WrongInput, match="test_folder"):
        make(test_folder="somewhere")


def test_the_gaussian_path_learns_faster_where_there_are_fewer_dimensions(good, monkeypatch):
    class Stop(Exception):
        pass

    def caught(loss, groups, *_, **__):
        seen.append({group.lr for group in groups})
        raise Stop

    seen: list[set[float]] = []
    monkeypatch.setattr(dfd, "train", caught)
    for dim in (dfd.PUBLISHED_DIM, 16):
        with pytest.raises(Stop):
            make(dim=dim, lr_gaussian=2e-4, lr_perlin=1e-4, lr_adaptor=5e-4).fit(good)
    assert seen == [{2e-4, 1e-4, 5e-4}, {2e-4 * 96, 1e-4, 5e-4}]


def test_lengths_and_sizes():
    assert (DFD().recipe("cuda", 10).epochs, DFD().recipe("cuda", 10).steps) == (80, None)
    assert (DFD().recipe("cpu", 10).epochs, DFD().recipe("cpu", 10).steps) == (None, 150)
    assert DFD(preset="published").recipe("cpu", 10).epochs == 80
    assert DFD(steps=7, epochs=3).recipe("cuda", 10).steps == 7
    assert DFD(epochs=3).recipe("cpu", 10).epochs == 3
    recipe = DFD(preset="published").recipe("cpu", 10)
    rates = [recipe.rate(10 * epoch, 800, 10) for epoch in (0, 38, 76, 79)]
    assert rates == pytest.approx([2e-4, 1.2e-4, 4e-5, 4e-5])
    assert DFD().form_for((512, 1024)) == dfd.Form(1536, 1024, 16, 32)
    assert DFD(dim=290).form_for((1, 2)) == dfd.Form(290, 193, 2, 32)  # heads divide the dimensions
    assert DFD(dim=8, hidden=5, heads=4).form_for((1, 2)) == dfd.Form(8, 5, 4, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 100}, "multiple of 32"),
        ({"engine": "onnx-int8"}, "int8"),
        ({"dim": 10, "heads": 4}, "multiple of heads"),
        ({"steps": 0}, "above 0"),
        ({"hidden": 0}, "1 or more"),
        ({"per_picture": 0}, "per_picture"),
        ({"textures": "nowhere"}, "holds no picture"),
    ],
)
def test_settings_that_cannot_be(settings, message, good):
    with pytest.raises(WrongInput, match=message):
        make(**settings).fit(good)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_the_authors_scale_is_the_mean_of_a_line_per_picture():
    maps = {"gaussian": np.random.default_rng(0).normal(3, 2, (4, 5, 5))}
    scores, fused = dfd.fuse(maps, dfd.scale_by_set(maps))
    m = maps["gaussian"]
    each = [(m - p.min()) / (p.max() - p.min()) for p in m]
    assert np.allclose(fused, np.mean(each, axis=0))
    peaks = m.max(axis=(1, 2))
    assert np.allclose(scores, (peaks - peaks.min()) / (peaks.max() - peaks.min()))


def test_two_paths_count_alike():
    rng = np.random.default_rng(1)
    maps = {"perlin": rng.random((3, 4, 4)), "gaussian": 100 * rng.random((3, 4, 4)) + 7}
    scale = {p: {"score": dfd.affine(m.min(), m.max()), "map": dfd.affine(m.min(), m.max())} for p, m in maps.items()}
    parts = [dfd.fuse({p: m}, scale) for p, m in maps.items()]
    scores, fused = dfd.fuse(maps, scale)
    assert np.allclose(fused, (parts[0][1] + parts[1][1]) / 2)
    assert np.allclose(scores, (parts[0][0] + parts[1][0]) / 2)
    assert parts[1][1].min() == pytest.approx(0)
    assert parts[1][1].max() == pytest.approx(1)


def test_scores_of_a_set_depend_on_the_set(good, drawn):
    detector = make().fit(good)
    detector.normalize = "test_set"
    found = scores(detector, drawn.test())
    assert -1e-5 < min(found) < max(found) < 1 + 1e-5
    assert list(detector.predict([])) == []
    assert scores(detector, drawn.test()[:2]) != found[:2]


def test_a_calibrated_and_a_tiled_one(good, drawn):
    calibrated = fit_calibrated(make(), good)
    assert calibrated.calibration.count >= 1
    assert calibrated.fitted
    large = np.tile(good[0].image(), (2, 2, 1))
    tiled = al.create("tiled", inner=make(), tile=96, overlap=32).fit(good)
    (prediction,) = tiled.predict([Sample("large", {"image": View("image", lambda: large)})])
    assert prediction.map.shape == (128, 128)
