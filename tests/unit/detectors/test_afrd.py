"""AFRD: the algebra of fusing lights, what explains a score, the guards, and samples that have no lights."""

from __future__ import annotations

import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import anomalens as al
from anomalens.backbones import get, network
from anomalens.datasets.eyecandies import Eyecandies
from anomalens.datasets.folder import Folder
from anomalens.datasets.procedural import Procedural
from anomalens.detectors.afrd import AFRD, by_light, contrasts, contributions
from anomalens.errors import WrongInput
from anomalens.images import encode
from anomalens.parts import distillation
from anomalens.parts.train import parameters_of, seeded, watching
from anomalens.types import Sample, View

torch = pytest.importorskip("torch")

CHANNELS = (4, 6, 8)
LEARNS = ("global", "pooled", "spatial")


def features(lights: int = 3, batch: int = 2, seed: int = 0) -> list:
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.rand(batch, lights, c, 64 // s, 64 // s, generator=rng) for c, s in zip(CHANNELS, (4, 8, 16), strict=True)
    ]


def bare(lights: int = 3, **settings) -> AFRD:
    """A detector of 64-pixel pictures with a teacher of few channels that is never asked."""
    detector = AFRD(image_size=64, **settings)
    detector.lights = tuple(f"light_{j}" for j in range(lights))
    detector.held = ()
    detector.__dict__["_network"] = SimpleNamespace(channels=CHANNELS)
    return detector


def stirred(module, seed: int = 0):
    """The same module with random parameters."""
    with seeded(seed):
        for p in module.parameters():
            torch.nn.init.normal_(p, std=0.05)
    return module


@pytest.fixture(scope="module")
def relief() -> Procedural:
    return Procedural("relief", size=64, train_count=6, good_count=1, bad_count=1)


@pytest.fixture(scope="module")
def good(relief):
    return relief.train()


# --- algebra ---


@pytest.mark.parametrize("attention", LEARNS)
@pytest.mark.parametrize("lights", [2, 6, 8])
def test_weights_are_shares(attention, lights):
    detector = bare(lights, attention=attention)
    parts, alpha = detector.parts_of(stirred(detector.new_fusion()), features(lights))
    assert alpha.shape == (3, 2, lights)
    assert float(alpha.detach().min()) >= 0
    assert float(alpha.detach().std(dim=2).max()) > 1e-4
    assert torch.allclose(alpha.sum(dim=2), torch.ones(3, 2), atol=1e-5)
    assert [p.shape for p in parts] == [f.shape for f in features(lights)]


@pytest.mark.parametrize("fusion", ["attention", "concat"])
@pytest.mark.parametrize("attention", LEARNS)
def test_learnt_fusions_start_as_the_mean(fusion, attention):
    detector, plain = bare(fusion=fusion, attention=attention), bare(fusion="mean")
    (fused,) = detector.targets(detector.parts_of(detector.new_fusion(), features())[0])
    (mean,) = plain.targets(plain.parts_of(plain.new_fusion(), features())[0])
    for a, b in zip(fused, mean, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
        assert fusion == "concat" or float((a - b).abs().max().detach()) < 2e-7


@pytest.mark.parametrize("attention", LEARNS)
def test_the_order_of_lights_does_not_matter(attention):
    detector, order = bare(attention=attention), [2, 0, 1]
    fuse, students = stirred(detector.new_fusion()), detector.new_students().eval()
    parts, alpha = detector.parts_of(fuse, features())
    turned, turned_alpha = detector.parts_of(fuse, [f[:, order] for f in features()])
    assert torch.allclose(alpha[:, :, order], turned_alpha, atol=1e-6)
    assert torch.allclose(detector.maps(students, parts)[0], detector.maps(students, turned)[0], atol=1e-5)


@pytest.mark.parametrize("fusion", ["attention", "mean", "max", "concat", "score_mean"])
def test_one_light_is_plain_reverse_distillation(fusion):
    detector = bare(1, fusion=fusion)
    students = detector.new_students().eval()
    parts, _ = detector.parts_of(detector.new_fusion(), features(1))
    single = [f[:, 0] for f in features(1)]
    expected = distillation.anomaly_maps(single, distillation.rebuild(students[0], single), 64, 4.0, False)
    assert torch.allclose(detector.maps(students, parts)[0][0], expected, atol=1e-5)


def test_parts_of_the_maximum_sum_to_it_even_where_lights_are_equal():
    detector, seen = bare(fusion="max"), features()
    seen[0][:, 1] = seen[0][:, 0]
    (fused,) = detector.targets(detector.parts_of(None, seen)[0])
    assert all(torch.equal(a, f.amax(dim=1)) for a, f in zip(fused, seen, strict=True))


def test_parts_of_a_convolution_sum_to_it():
    f = features()[2]
    weight = torch.rand(8, 3 * 8, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.conv2d(f.flatten(1, 2), weight[:, :, None, None])
    assert torch.allclose(by_light(weight, f).sum(dim=1), expected, atol=1e-5)


# --- explanation ---


@pytest.mark.parametrize("fusion", ["attention", "mean", "max", "concat"])
def test_the_score_is_a_sum_over_lights(fusion):
    detector = bare(fusion=fusion)
    parts, _ = detector.parts_of(stirred(detector.new_fusion()), features(batch=1))
    maps, rebuilt = detector.maps(detector.new_students().eval(), parts)
    values = maps[:, 0].detach().numpy()
    for peak in ((0, 0), (31, 40)):
        shares = detector.shares([p.detach() for p in parts], [g.detach() for g in rebuilt[0]], values, peak)
        assert shares.shape == (3,)
        assert shares.sum() == pytest.approx(values[0][peak], rel=1e-4)


def test_contributions_against_the_cosine():
    parts, rebuilt = [p[:1] for p in features()], [f[:1, 0] for f in features(seed=9)]
    for scale, (p, g) in enumerate(zip(parts, rebuilt, strict=True)):
        f = p.sum(dim=1)
        total = sum(light[scale] for light in contributions(parts, rebuilt))
        assert np.allclose(total, 1 - torch.cosine_similarity(f, g, dim=1)[0].numpy(), atol=1e-5)


def flat(index: int, light: int, spot: bool = False) -> np.ndarray:
    """(64, 64, 3) uint8: soft grain under one of four lights; a bright square in it."""
    rng = np.random.default_rng((index, light))
    values = np.full((64, 64, 3), 70.0 + 30 * light) + rng.normal(0, 3, (64, 64, 3))
    if spot:
        values[24:40, 24:40] = 250 - 50 * light
    return values.clip(0, 255).astype(np.uint8)


def thing(index: int, spot: int | None = None) -> Sample:
    views = {f"light_{j}": View(f"light_{j}", partial(flat, index, j, spot == j)) for j in range(4)}
    return Sample(str(index), views)


def even(samples: list[Sample], level: float, noise: float = 2.0) -> list[Sample]:
    """The samples under one more light, light_6, that shows nothing: a grey level and the noise of a sensor, of 255."""
    rng = np.random.default_rng(0)
    greys = [np.rint((level + rng.normal(0, noise, (64, 64, 3))).clip(0, 255)).astype(np.uint8) for _ in samples]
    views = [View("light_6", partial(np.asarray, grey)) for grey in greys]
    return [Sample(s.id, {**s.views, "light_6": view}) for s, view in zip(samples, views, strict=True)]


@pytest.fixture(scope="module")
def taught() -> dict[str, AFRD]:
    things = [thing(i) for i in range(8)]
    steps = {"attention": 30, "mean": 30, "score_max": 15}
    return {fusion: AFRD(image_size=64, steps=n, fusion=fusion).fit(things) for fusion, n in steps.items()}


@pytest.mark.parametrize("fusion", ["attention", "mean", "score_max"])
@pytest.mark.parametrize("light", [0, 2])
def test_the_light_that_shows_the_defect_is_named(taught, fusion, light):
    fine, bad = taught[fusion].predict([thing(100), thing(101, spot=light)])
    assert bad.score > fine.score
    assert bad.reasons[0].rule == "lights"
    assert bad.reasons[0].text.startswith(f"Seen under light_{light} ")
    for reason in bad.reasons:
        assert list(reason.shares) == ["light_0", "light_1", "light_2", "light_3"]
        assert sum(reason.shares.values()) == pytest.approx(1, abs=1e-5)
    assert max(bad.reasons[0].shares, key=bad.reasons[0].shares.get) == f"light_{light}"
    assert 24 - 8 <= bad.map.argmax() // 64 < 40 + 8
    assert [r.rule for r in bad.reasons] == ["lights", "attention"][: 1 + (fusion == "attention")]


def test_the_weights_are_told(taught):
    assert "Weights of the lights over the good samples" in taught["attention"].state()
    assert taught["attention"].trained["alpha"].shape == (3, 4)
    assert "Weights" not in taught["mean"].state()
    assert AFRD().state() == ""


# --- guards ---


def test_entropy_rewards_even_weights():
    detector = bare()
    students = detector.new_students().eval()
    parts, _ = detector.parts_of(detector.new_fusion(), features())
    even, one = torch.full((3, 2, 3), 1 / 3), torch.eye(3)[:1].expand(3, 2, 3)
    with torch.no_grad():
        without = detector.loss(students, parts, even, 0.0)
        rewards = [float(detector.loss(students, parts, alpha, 0.01) - without) for alpha in (even, one)]
    assert rewards == pytest.approx([-0.01 * 3 * np.log(3), 0], abs=1e-5)


def test_no_weight_falls_below_the_floor():
    detector = bare(floor=0.05)
    alpha = detector.weigh(torch.tensor([[50.0, 0.0, -50.0]]))
    assert alpha[0].tolist() == pytest.approx([0.9, 0.05, 0.05])


def test_a_detached_target_teaches_through_the_input_alone():
    gradients = []
    for detach in (False, True):
        detector = bare(detach_target=detach)
        with seeded(0):
            students = detector.new_students()
        for p in students[0]["oce"].parameters():
            p.data.zero_()  # nothing of the input reaches the code
        fuse = stirred(detector.new_fusion())
        detector.loss(students, *detector.parts_of(fuse, features())).backward()
        gradients.append(float(fuse["scale1"].weight.grad.abs().max()))
    assert gradients[0] > 0
    assert gradients[1] == 0


@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("attention", LEARNS)
def test_held_lights_have_their_share_and_the_others_the_rest(attention, floor):
    detector = bare(5, attention=attention, floor=floor)
    detector.held = ("light_1", "light_4")
    start = detector.parts_of(detector.new_fusion(), features(5))[1]
    assert torch.allclose(start, torch.full((3, 2, 5), 0.2))
    alpha = detector.parts_of(stirred(detector.new_fusion()), features(5))[1].detach()
    assert torch.allclose(alpha[..., [1, 4]], torch.tensor(0.2))
    assert torch.allclose(alpha.sum(dim=2), torch.ones(3, 2), atol=1e-5)
    assert float(alpha.min()) >= floor
    assert float(alpha[..., [0, 2, 3]].std(dim=2).max()) > 1e-4


def test_contrast_is_that_of_cells_of_four_pixels():
    lights = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 3), np.uint8)
    for light, value in zip(lights, contrasts(lights), strict=True):
        means = [light[y : y + 4, x : x + 4].mean(axis=(0, 1)) / 255 for x in range(0, 16, 4) for y in (0, 4)]
        assert value == pytest.approx(np.std(means, axis=0).mean(), rel=1e-5)
    assert contrasts(lights.astype(np.uint16) * 257) == pytest.approx(contrasts(lights), rel=1e-5)


@pytest.mark.parametrize("level", [0, 128])
def test_a_light_that_shows_nothing_cannot_be_favoured(level, good, tmp_path):
    lit = even(good, level)
    settings = {"image_size": 64, "steps": 3, "attention_lr": 0.1, "entropy": 0.0}
    with pytest.warns(
        UserWarning, match=r"^light_6 shows nothing on the good samples: weight held at 1/7; is the lamp on"
    ):
        detector = AFRD(**settings).fit(lit)
    assert np.allclose(detector.trained["alpha"][:, 6], 1 / 7)
    assert detector.trained["alpha"][:, :6].std() > 1e-3
    assert detector.state().endswith("light_6 shows nothing on the good samples: weight held at 1/7.")
    al.save(detector, tmp_path / "model")
    loaded = al.load(tmp_path / "model")
    assert loaded.state() == detector.state()
    for a, b in zip(detector.predict(lit[:2]), loaded.predict(lit[:2]), strict=True):
        assert a.score == b.score
        assert a.reasons[1].shares["light_6"] == pytest.approx(1 / 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free = AFRD(**settings, hold_silent=False).fit(lit)
    assert np.abs(free.trained["alpha"][:, 6] - 1 / 7).max() > 1e-3
    assert "shows nothing" not in free.state()


def test_only_what_shows_nothing_is_held(good, shared):
    """Not rendered lights, dim ones or noise; and none without attention or with the authors' preset."""

    def held(samples: list[Sample], **settings) -> tuple[str, ...]:
        detector = AFRD(image_size=64, **settings)
        detector.lights = detector.lights_of(samples[:1])
        return detector.silent([detector.read(s)[0] for s in samples])

    assert held(even(good, 5)) == ("light_6",)
    assert held(even(good, 5), preset="authors") == held(even(good, 5), fusion="mean") == ()
    assert held(even(good, 5), preset="authors", hold_silent=True) == ("light_6",)
    assert held(even(good, 128, noise=80)) == ()
    off = even(even(good, 0, noise=0), 5)[0].views["light_6"]
    lit = [Sample(s.id, {"light_0": s.views["light_0"], "light_1": off, "light_2": off}) for s in good]
    assert held(lit) == ("light_1", "light_2")  # most of them
    dim = {s.id: (s.image("light_0") * 0.2).astype(np.uint8) for s in good}
    assert held([Sample(s.id, {**s.views, "light_6": View("light_6", partial(dim.get, s.id))}) for s in good]) == ()
    rendered = Folder(shared / "data" / "multi_light_sample").samples()
    assert all(held([s]) == () for s in [*good, *rendered])


def test_presets():
    assert AFRD().recipe("cuda") == AFRD(preset="ours").recipe("cpu")
    assert AFRD().recipe("cpu") == AFRD(preset="small").recipe("cuda")
    recipe, attention_lr, entropy = AFRD(preset="authors").recipe("cpu")
    assert (recipe.optimiser, recipe.lr, recipe.weight_decay, recipe.epochs) == ("adamw", 0.4, 1e-4, 20)
    assert (attention_lr, entropy) == (0.4, 0.0)
    recipe, attention_lr, entropy = AFRD(preset="ours").recipe("cpu")
    assert (recipe.optimiser, recipe.lr, recipe.betas, recipe.weight_decay, recipe.epochs) == (
        "adam",
        0.005,
        (0.5, 0.999),
        0.0,
        20,
    )
    assert (attention_lr, entropy) == (1e-4, 0.01)
    recipe, attention_lr, entropy = AFRD(lr=0.1, attention_lr=0.2, entropy=0.3, epochs=4).recipe("cpu")
    assert (recipe.lr, recipe.epochs, recipe.steps, attention_lr, entropy) == (0.1, 4, None, 0.2, 0.3)


# --- training ---


def test_the_loss_halves_in_five_epochs_and_the_teacher_stays(good):
    images = distillation.as_input(good[0].image("light_1"))[None]
    before = get("tiny", strides=distillation.STRIDES, engine="torch")(images)
    means = [0.0]
    with watching(lambda step, total, figures: means.append(figures["loss"]) if step else None):
        detector = AFRD(image_size=64, epochs=5, batch_size=1, entropy=0.0, engine="torch").fit(good)
    losses = np.diff(np.array(means) * np.arange(len(means)))  # the report is the mean of all steps so far, up to 50
    assert len(losses) == 5 * len(good)
    assert losses[-len(good) :].mean() < losses[: len(good)].mean() / 2
    assert all(torch.equal(a, b) for a, b in zip(before, network(detector)(images), strict=True))


# --- samples ---


@pytest.mark.parametrize("fusion", ["concat", "max", "single", "image_mean", "score_mean"])
def test_every_fusion_is_saved_whole(fusion, good, relief, tmp_path):
    detector = AFRD(image_size=64, steps=2, fusion=fusion, light="light_3").fit(good)
    assert detector.lights == (("light_3",) if fusion == "single" else tuple(f"light_{k}" for k in range(6)))
    al.save(detector, tmp_path / "model")
    for a, b in zip(detector.predict(relief.test()), al.load(tmp_path / "model").predict(relief.test()), strict=True):
        assert a.score == b.score
        assert a.reasons == b.reasons


def test_lights_are_counted_not_spelt(good):
    many = Sample(
        "0", {f"light_{k}": good[0].views["light_0"] for k in (10, 2, 0)} | {"depth": good[0].views["light_1"]}
    )
    assert AFRD().lights_of([many]) == ("light_0", "light_2", "light_10")
    assert AFRD(views=("light_2", "light_0")).lights_of([many]) == ("light_2", "light_0")


def test_reads_eyecandies(tmp_path):
    for split, count in (("train", 3), ("val", 1), ("test_public", 2)):
        folder = tmp_path / "Confetto" / split / "data"
        folder.mkdir(parents=True)
        for i in range(count):
            for j in range(6):
                (folder / f"{i:03d}_image_{j}.png").write_bytes(encode(flat(i, j)))
            (folder / f"{i:03d}_depth.png").write_bytes(encode(flat(i, 0)))
            (folder / f"{i:03d}_mask.png").write_bytes(encode(np.full((64, 64), 255 * (i == 1), np.uint8)))
    candies = Eyecandies(tmp_path, "Confetto")
    detector = AFRD(image_size=64, steps=1).fit(candies.train())
    assert detector.lights == tuple(f"light_{k}" for k in range(6))
    assert len(list(detector.predict(candies.test()))) == 2


def test_calibrates(good, relief):
    calibrated = al.fit_calibrated(AFRD(image_size=64, steps=1, fusion="mean"), good[:4])
    (judged,) = [calibrated.calibration.judge(p) for p in calibrated.predict(relief.test()[:1])]
    assert 0 < judged.p_value <= 1
    assert judged.reasons


def test_quantises_its_teacher_without_a_view_named_image(good, shared, resnet18):
    lit = [Sample(s.id, {k: v for k, v in s.views.items() if k != "image"}) for s in good[:2]]
    detector = AFRD(image_size=64, steps=1, backbone=resnet18, engine="onnx-int8", fusion="mean").fit(lit)
    assert len(list(detector.predict(lit))) == 2


def test_wrong_input_is_named(good):
    one_picture = [Sample("a/7.png", {"image": good[0].views["image"]})]
    with pytest.raises(WrongInput, match=r"light_0.*a/7\.png.*use rd"):
        AFRD().fit(one_picture)
    with pytest.raises(WrongInput, match="got none"):
        AFRD().fit([])
    with pytest.raises(WrongInput, match="at least 2"):
        AFRD(image_size=64).fit(good[:1])
    with pytest.raises(WrongInput, match="batch_size of 1"):
        AFRD(image_size=64, batch_size=0).fit(good)
    lacking = Sample("c", {k: v for k, v in good[0].views.items() if k != "light_2"})
    with pytest.raises(WrongInput, match=r"sample c .*'light_2' is needed"):
        AFRD(image_size=64).fit([good[0], lacking])
    with pytest.raises(WrongInput, match=r"has light_2, which the first good sample has not; leave out"):
        AFRD(image_size=64).fit([lacking, good[0]])
    with pytest.raises(WrongInput, match="floor"):
        AFRD(image_size=64, floor=0.2).fit(good)
    odd = Sample(
        "b", {"light_0": good[0].views["light_0"], "light_1": View("light_1", lambda: np.zeros((9, 9, 3), np.uint8))}
    )
    with pytest.raises(WrongInput, match=r"sample b.*light_1 9 x 9"):
        AFRD(image_size=64).fit([odd, odd])


def test_the_authors_training_runs_and_keeps_its_attention(good):
    detector = AFRD(image_size=64, preset="authors", epochs=1).fit(good)
    assert set(detector.fuse) == {f"scale{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")}
    assert any(np.abs(a).max() > 0.1 for a in detector.fuse.values())
    assert not np.array_equal(detector.fuse["scale1.weight"], parameters_of(detector.new_fusion())["scale1.weight"])
