"""PNPT: the mechanics that the reading promises; what the parts are for is measured by benchmarks/pnpt_ablation.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import anomalens as al
from anomalens.backbones import network
from anomalens.datasets.procedural import Procedural
from anomalens.detectors import pnpt
from anomalens.detectors.pnpt import PNPT
from anomalens.errors import NotFitted, WrongInput
from anomalens.parts.train import seeded, watching
from anomalens.types import Sample, View

torch = pytest.importorskip("torch")

NAMES = ("cap", "leather", "stripes")
CHANNELS = (32, 64, 128)
WIDE = (256, 512, 1024)  # of wide_resnet50_2


def make(**settings) -> PNPT:
    return PNPT(**{"image_size": 64, "preset": "small", "steps": 3, "batch_size": 4, "device": "cpu", **settings})


@pytest.fixture(scope="module")
def good() -> list[Sample]:
    """Eight pictures of each of three categories, 64 x 64."""
    return [s for name in NAMES for s in Procedural(name, size=64, train_count=8).train()]


@pytest.fixture(scope="module")
def test() -> list[Sample]:
    return [s for name in NAMES for s in Procedural(name, size=64, good_count=2, bad_count=2).test()]


@pytest.fixture(scope="module")
def fitted(good) -> PNPT:
    return make().fit(good)


def made(side: int = 6, rows: int = 0, channels=CHANNELS, **how) -> torch.nn.Module:
    with seeded(0):
        return pnpt.new_network(channels, side, rows, 0.1, **{"width": 32, "layers": 2, "heads": 4, **how}).eval()


def features(count: int, side: int = 6, channels=CHANNELS, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(count, c, side * p, side * p, generator=g) for c, p in zip(channels, pnpt.PATCH, strict=True)]


def images(samples) -> np.ndarray:
    return np.stack([np.moveaxis(s.image(), 2, 0).astype(np.float32) / 255 for s in samples])


def scores(detector: PNPT, samples) -> list[float]:
    return [p.score for p in detector.predict(samples)]


def grey(value: int, size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def sample(name: str, picture: np.ndarray, category: str = "") -> Sample:
    return Sample(name, {"image": View("image", lambda: picture)}, category)


# --- the network ------------------------------------------------------------------------------------------------------


def test_shapes_and_size_of_the_published_network():
    net = made(14, channels=WIDE, width=384, layers=4, heads=8)
    F = features(2, 14, WIDE)
    P = pnpt.embed(net, features(2, 14, WIDE, 1))
    assert P.shape == (2, 196, 384)
    E_X, E_A = pnpt.encode(net, pnpt.embed(net, F), P)
    assert E_X.shape == E_A.shape == (2, 196, 384)
    C_X = pnpt.context_of(net, E_X)
    assert C_X.shape == (2, 16, 384)
    assert [r.shape for r in pnpt.decode(net, E_A, C_X, (14, 14))] == [f.shape for f in F]
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert 24 < millions < 26  # 27 in the reading, of which 2.4 cannot be reached by any gradient and are left out


def test_embedding_is_the_convolution_of_patches():
    net, F = made(), features(1)
    expected = 0
    for k, p in zip((1, 2, 3), pnpt.PATCH, strict=True):
        f = F[k - 1][0].permute(1, 2, 0)
        f = (f - f.mean(-1, keepdim=True)) / (f.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        weight, bias = net["hpe"][f"conv{k}"].weight, net["hpe"][f"conv{k}"].bias
        expected = expected + torch.einsum("hawbc,dcab->hwd", f.reshape(6, p, 6, p, -1), weight) + bias
    got = pnpt.embed(net, F)[0] - pnpt.positions(6, 6, 32)
    assert torch.allclose(got, expected.reshape(36, 32), atol=1e-4)
    changed = [F[0] + 1 + torch.rand_like(F[0]), F[1], F[2]]
    assert not torch.allclose(pnpt.embed(net, changed), pnpt.embed(net, F))
    assert torch.equal(pnpt.embed(net, changed, "last"), pnpt.embed(net, F, "last"))


def test_jitter_is_noise_of_its_scale():
    net, F = made(width=128), features(2)
    with torch.no_grad():
        plain = pnpt.embed(net, F) - pnpt.positions(6, 6, 128)
        noise = pnpt.embed(net, F, jitter=20.0) - pnpt.embed(net, F)
    assert float(noise.std()) == pytest.approx(float(20 * plain.norm(dim=-1).mean() / 128), rel=0.1)


def test_positions_tell_places_apart():
    at = pnpt.positions(5, 7, 32)
    assert at.shape == (35, 32)
    assert len({tuple(row.tolist()) for row in at}) == 35
    assert torch.equal(at[:7, :16], at[:1, :16].expand(7, -1))  # the first row: same half, other columns
    assert float(at[8, 0]) == pytest.approx(np.sin(1.0))


def test_attention_is_the_textbook_one():
    net = made(heads=1)
    block, q, k = net["alignment"]["mca"], torch.randn(1, 5, 32), torch.randn(1, 9, 32)
    weights = torch.softmax(block["q"](q) @ block["k"](k).mT / 32**0.5, dim=-1)
    assert torch.allclose(pnpt.attend(block, q, k), block["o"](weights @ block["v"](k)), atol=1e-5)


def test_aligned_tokens_hold_prompts_and_nothing_else():
    """With one head every row of E_A is the prompt there and a mix of prompt values; the picture only changes the weights."""
    net = made(3, heads=1)
    X, P = pnpt.embed(net, features(1, 3)), pnpt.embed(net, features(1, 3, seed=1))
    seen = P
    for layer in net["sace"]:
        seen = pnpt.think(layer, seen)
    alignment = net["alignment"]
    values = alignment["mca"]["o"](alignment["mca"]["v"](alignment["norm"](seen)))[0]  # (9, 32): a span of 9 of 32
    rows = []
    for at in range(9):
        changed = X.clone()
        changed[0, at] += 10 * torch.randn(32)
        rows.append((pnpt.encode(net, changed, P, couple_back=False)[1] - seen)[0])
    assert not torch.allclose(rows[0], rows[1])
    rows = torch.cat(rows)
    assert torch.linalg.matrix_rank(values, rtol=1e-4) == 9
    assert torch.linalg.matrix_rank(torch.cat([values, rows]), rtol=1e-4) == 9
    weights = torch.linalg.lstsq(values.T.double(), rows.T.double()).solution
    assert torch.allclose(weights.sum(0), torch.ones(81, dtype=torch.float64), atol=1e-3)
    assert weights.min() > -1e-3


def test_alignment_adds_to_the_prompt_of_the_place():
    net = made()
    X, P = pnpt.embed(net, features(1)), torch.cat([pnpt.embed(net, features(1, seed=i)) for i in (1, 2)], dim=1)
    own = pnpt.encode(net, X, P, align=False)[1]
    assert not torch.allclose(pnpt.encode(net, X, P)[1], own)
    net["alignment"]["mca"]["o"].weight.data.zero_()
    assert torch.equal(pnpt.encode(net, X, P)[1], own)


def test_the_picture_changes_prompts_only_where_it_is_coupled_back():
    net = made()
    X, other, P = (pnpt.embed(net, features(1, seed=i)) for i in range(3))

    def prompts_after(tokens, couple_back):
        return pnpt.encode(net, tokens, P, align=False, couple_back=couple_back)[1]

    assert torch.equal(prompts_after(X, True), prompts_after(other, True))  # gamma starts at 0
    net["tokens"]["gamma"].data[:] = 0.5
    assert not torch.allclose(prompts_after(X, True), prompts_after(other, True))
    assert torch.equal(prompts_after(X, False), prompts_after(other, False))


def test_the_context_is_too_narrow_for_places():
    """16 tokens; without them the prior stream does not see the picture but through the alignment's weights."""
    net = made()
    E_A = torch.randn(1, 36, 32)
    told = [pnpt.context_of(net, torch.randn(1, 36, 32)) for _ in range(2)]
    assert told[0].shape == (1, 16, 32)
    with_context = [pnpt.decode(net, E_A, c, (6, 6))[2] for c in told]
    assert not torch.allclose(*with_context)
    assert pnpt.decode(net, E_A, None, (6, 6))[0].shape == (1, 32, 24, 24)


def test_neighbours_are_hidden():
    mask = pnpt.neighbour_mask(5, 6, 3).reshape(5, 6, 5, 6)
    for y, x in ((0, 0), (2, 3), (4, 5)):
        for v in range(5):
            for u in range(6):
                assert bool(mask[y, x, v, u]) == (max(abs(y - v), abs(x - u)) > 1)
    net = made(5)
    layer, tokens = net["sace"][0], torch.randn(1, 25, 32)
    visible = pnpt.neighbour_mask(5, 5, 3)
    changed = tokens.clone()
    changed[0, 0] += 5
    moved = (pnpt.think(layer, changed, visible=visible) - pnpt.think(layer, tokens, visible=visible)).abs().amax(2)[0]
    assert moved[1] == moved[6] == 0  # neighbours do not see the place, others do
    assert moved[24] > 0


def test_losses():
    F, R = features(2), features(2, seed=1)
    cell = sum(float((1 - (f * r).sum(1) / (f.norm(dim=1) * r.norm(dim=1))).mean()) for f, r in zip(F, R, strict=True))
    assert float(pnpt.misses(F, R, "cell")) == pytest.approx(cell, rel=1e-4)
    flat = sum(1 - float(torch.cosine_similarity(f.flatten(1), r.flatten(1)).mean()) for f, r in zip(F, R, strict=True))
    assert float(pnpt.misses(F, R, "flat")) == pytest.approx(flat, rel=1e-4)
    nothing = [torch.zeros_like(f) for f in F]
    assert float(pnpt.misses(nothing, R, "cell")) == 3  # and no division by zero


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_the_pool_starts_at_the_medoid_and_spreads():
    keys = np.array([[1, 0], [0.9, 0.1], [0.95, 0.05], [0, 1], [1, 1], [-1, 0.2]], np.float64)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    owners = np.array([0, 0, 0, 0, 1, 1])
    distance = np.linalg.norm(keys[:, None] - keys, axis=2)
    picked = [int(distance[:4, :4].sum(1).argmin())]
    for _ in range(2):
        picked.append(int(distance[:4][:, picked].min(1).argmax()))
    assert pnpt.choose(keys, owners, 3)[:3] == picked
    assert sorted(pnpt.choose(keys, owners, 9)) == [0, 1, 2, 3, 4, 5]


def test_no_picture_is_shown_itself_or_a_copy(good):
    """Categories that are shown: their own; twins in other files, a grey level apart, count as copies."""
    twins = [sample(f"twin {i}", good[i].image() // 2 * 2, good[i].category) for i in (0, 1, 9)]
    pictures = [s.image() for s in (*good, *twins)]
    owners = np.array([NAMES.index(s.category) for s in (*good, *twins)])
    detector = make(top_t=2, batch_size=1)
    kept = [(np.full((1, 1, 1), i, np.float32),) * 3 for i in range(len(pictures))]
    places = list(range(0, len(pictures), 2))
    shown: dict[int, set[int]] = {}
    for epoch in range(30):
        for f, _, _, owner in detector.lessons(pictures, kept, owners, places)(epoch):
            i, *prompts = f[0].ravel().astype(int).tolist()
            assert owner[0] == owners[i]
            assert len(prompts) == 2
            shown.setdefault(i, set()).update(prompts)
    assert set(shown) == set(range(len(pictures)))
    copies = {0: {0, 24}, 24: {0, 24}, 1: {1, 25}, 25: {1, 25}, 9: {9, 26}, 26: {9, 26}}
    for i, prompts in shown.items():
        allowed = {j for j in places if owners[j] == owners[i]} - copies.get(i, {i})
        assert prompts == allowed


def test_a_pool_of_one_teaches_with_the_others(good):
    detector = make(exemplars=1, steps=1).fit(good)
    assert detector.pictures.shape == (3, 64, 64, 3)
    assert detector.pictures.dtype == np.uint8


def test_retrieval_finds_the_category(fitted, test):
    unknown = [replace(s, category="") for s in test]
    found = list(fitted.predict(unknown))
    assert np.mean([p.category == s.category for p, s in zip(found, test, strict=True)]) >= 0.9
    assert "look most alike" in found[0].reasons[0].text
    told = list(fitted.predict(test))
    assert [p.category for p in told] == [s.category for s in test]
    assert all(not p.reasons for p in told)
    right = [i for i, s in enumerate(test) if found[i].category == s.category]
    assert [found[i].score for i in right] == pytest.approx([told[i].score for i in right], rel=1e-5)


def test_the_nearest_exemplars_of_the_category_are_shown(fitted):
    keys = np.eye(len(fitted.keys)) @ fitted.keys
    got = fitted.retrieve(keys, ["" for _ in keys])
    assert np.array_equal(got["owner"], fitted.owners)
    assert np.array_equal(got["chosen"][:, 0], np.arange(len(keys)))
    fitted.prompt, fitted.top_t = "label", 5
    try:
        got = fitted.retrieve(keys[:1], [NAMES[2]])
        with pytest.raises(WrongInput, match=r"'unheard of'.*prompt='auto'"):
            fitted.retrieve(keys[:1], ["unheard of"])
    finally:
        fitted.prompt, fitted.top_t = "auto", 1
    likeness = np.where(fitted.owners == 2, keys[0] @ fitted.keys.T, -np.inf)
    order = np.argsort(-likeness, kind="stable")[:3]
    assert got["chosen"][0].tolist() == [*order, *order[:2]]  # three there are; five were asked for


def test_a_prompt_is_what_the_tokens_come_from(fitted, test):
    """An exemplar as its own prompt, by hand, is what the pool gives; another prompt gives another answer."""
    stages = fitted.trace(images(test[:2]), [s.category for s in test[:2]])
    shown = fitted.tokens_of(images([sample("", fitted.pictures[j]) for j in stages["chosen"][:, 0]]))
    again = fitted.trace(images(test[:2]), ["", ""], shown)
    assert torch.allclose(again["map"], stages["map"], atol=1e-5)
    other = fitted.trace(images(test[:2]), ["", ""], fitted.tokens_of(images(test[8:10])))
    assert not torch.allclose(other["m_P"], stages["m_P"], atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"pool": "off"},
        {"pool": "off", "streams": "sample", "neighbours": 3},
        {"pool": "learnable"},
        {"streams": "prior", "context": False},
        {"align": False, "top_t": 3},
        {"embed": "last", "couple_back": False, "loss": "flat", "image_score": "max"},
    ],
)
def test_variants_train_predict_and_load(settings, good, test, tmp_path):
    detector = make(steps=2, **settings).fit(good)
    expected = scores(detector, test)
    assert np.isfinite(expected).all()
    al.save(detector, tmp_path / "m")
    assert scores(al.load(tmp_path / "m"), test) == expected
    stages = detector.trace(images(test[:2]), ["", ""])
    assert ("m_P" in stages) == (settings.get("streams") != "sample")
    assert ("m_S" in stages) == (settings.get("streams") != "prior")
    maps = [stages[m] for m in ("m_P", "m_S") if m in stages]
    assert torch.allclose(stages["map"], sum(maps) / len(maps))
    if settings.get("pool") == "off":
        assert len(detector.pictures) == 0
        assert next(detector.predict(test)).category == ""


def test_learnable_prompts_begin_at_the_exemplars(good):
    detector = make(pool="learnable", lr=1e-12, steps=1).fit(good)
    learnt = torch.from_numpy(detector.parameters["tokens.prompts"])
    shown = images([sample("", p) for p in detector.pictures[detector.owners == 1]])
    assert torch.allclose(learnt[1], detector.tokens_of(shown).mean(0), atol=1e-3)


# --- training and scores ----------------------------------------------------------------------------------------------


def test_the_loss_halves(good):
    told = []
    with watching(lambda step, total, figures: told.append(figures.get("loss"))):
        make(steps=60, batch_size=8).fit(good)
    assert told[-1] < 0.5 * told[1]  # the mean of the last fifty steps against the first


def test_recipe_of_the_reading():
    chosen = PNPT(preset="published").sizes("cpu")
    recipe = PNPT(preset="published").recipe(chosen, 10)
    assert (recipe.epochs, recipe.optimiser, recipe.lr, recipe.betas) == (200, "adamw", 1e-4, (0.9, 0.95))
    assert (recipe.weight_decay, recipe.clip, recipe.warmup, recipe.schedule) == (1e-4, 1.0, 50, "cosine")
    assert recipe.lr_end == pytest.approx(1e-6)
    assert PNPT().sizes("cuda") == chosen
    assert PNPT().sizes("cpu")["width"] == 128
    for name in ("small", "published"):
        by_epochs, by_steps = PNPT(epochs=4, preset=name), PNPT(steps=4, epochs=9, preset=name)
        assert by_epochs.recipe(by_epochs.sizes("cpu"), 10).epochs == 4
        assert by_steps.recipe(by_steps.sizes("cpu"), 10).steps == 4
    assert PNPT(width=64, exemplars=5).sizes("cuda") == chosen | {"width": 64, "exemplars": 5}


def test_the_backbone_stays_and_seeds_decide(fitted, good, test):
    again = make().fit(good)
    assert scores(again, test) == scores(fitted, test)
    assert network(again).fingerprint == again.weights["fingerprint"]
    assert scores(make(seed=1).fit(good), test) != scores(fitted, test)


def test_the_best_moment_on_drawn_defects_in_pictures_held_out(test, monkeypatch, tmp_path):
    good = [s for name in NAMES for s in Procedural(name, size=64, train_count=11).train()][:25]  # 11, 11 and 3
    told, lessons = [], PNPT.lessons
    monkeypatch.setattr(
        PNPT, "lessons", lambda self, pictures, *rest: told.append(len(pictures)) or lessons(self, pictures, *rest)
    )
    detector = make(select="pseudo").fit(good)
    assert told == [21]
    assert 1 <= detector.trained["kept"] <= 3
    assert "best on drawn defects" in detector.state()
    al.save(detector, tmp_path / "m")
    assert scores(al.load(tmp_path / "m"), test) == scores(detector, test)
    with pytest.raises(WrongInput, match="none has 10; give more"):
        make(select="pseudo").fit(good[16:])


@pytest.mark.parametrize("settings", [{}, {"pool": "learnable"}, {"pool": "off"}, {"top_t": 2, "streams": "prior"}])
def test_the_score_of_held_out_pictures_is_that_of_the_fitted_detector(settings, good, monkeypatch):
    """Taken during training, by other means: AUROC of the same pictures and drawn defects when judged afterwards."""
    seen, validation = [], PNPT.validation

    def noted(self, net, teacher, unseen, device):
        score = validation(self, net, teacher, unseen, device)
        return lambda: seen.append(score()) or seen[-1]

    monkeypatch.setattr(PNPT, "validation", noted)
    monkeypatch.setattr(pnpt, "HELD_OUT", 4)
    detector = make(select="pseudo", steps=1, **settings).fit(good)
    unseen = [good[i] for i in sorted(pnpt.held_out([s.category for s in good]))]
    pictures, truth = [], []
    for i, one in enumerate(unseen):
        rng = np.random.default_rng((0, i))
        bad = [pnpt.PerlinDefects(normal_share=0.0)(one.image().astype(np.float32) / 255, rng) for _ in range(2)]
        pictures += [images([one])[0], *(np.moveaxis(b.image, 2, 0) for b in bad)]
        truth += [np.zeros((64, 64), bool), *(b.mask for b in bad)]
    maps = detector.trace(np.stack(pictures), [s.category for s in unseen for _ in range(3)])["map"]
    labels = np.array([t.any() for t in truth])
    of_image = al.metrics.image(detector.image_scores(maps).numpy(), labels, ["auroc"])["auroc"].value
    of_pixel = al.metrics.pixel(list(maps.numpy()), truth, which=["auroc"])["auroc"].value
    assert seen == [pytest.approx(of_image + of_pixel, abs=2e-3)]


def test_training_stops_early_on_drawn_defects(good, monkeypatch):
    monkeypatch.setattr(pnpt, "HELD_OUT", 8)
    monkeypatch.setattr(PNPT, "validation", lambda *args: iter([0.5, 0.7, *[0.6] * 20]).__next__)
    detector = make(select="pseudo", patience=3, steps=20).fit(good)
    assert (detector.trained["steps"], detector.trained["kept"]) == (5, 2)


def test_an_interrupted_training_goes_on(fitted, good, test, tmp_path):
    class Stop(Exception):
        pass

    def stop(step, total, figures):
        if step == 2:
            raise Stop

    detector = make()
    with pytest.raises(Stop), watching(stop, tmp_path):
        detector.fit(good)
    with pytest.raises(NotFitted):
        scores(detector, test)
    with watching(None, tmp_path):
        assert scores(make().fit(good), test) == scores(fitted, test)


@pytest.mark.parametrize("settings", [{"align": False}, {"jitter": 0.0}, {"loss": "flat"}, {"streams": "prior"}])
def test_the_checkpoint_of_other_settings_is_refused(settings, good, tmp_path):
    with watching(None, tmp_path):
        make().fit(good)
    with watching(None, tmp_path), pytest.raises(WrongInput, match="another training"):
        make(**settings).fit(good)


def test_features_that_do_not_fit_the_memory_are_computed_again(fitted, good, test):
    anew = make(limit_memory="1KB").fit(good)
    assert scores(anew, test) == pytest.approx(scores(fitted, test), rel=1e-2)


def test_the_image_score_is_the_highest_pixel_or_mean_of_a_window():
    maps = torch.rand(2, 64, 64)
    slow = [max(float(m[y : y + 16, x : x + 16].mean()) for y in range(49) for x in range(49)) for m in maps]
    assert PNPT(image_score="pooled").image_scores(maps).tolist() == pytest.approx(slow, rel=1e-5)
    assert PNPT().image_scores(maps).tolist() == [float(m.max()) for m in maps]


def test_a_threshold_for_each_category_also_where_the_category_is_found(good, test):
    calibrated = al.fit_calibrated(make(steps=1), good)
    c = calibrated.calibration
    assert (c.given, set(c.categories)) == (24, set(NAMES))
    own = c.parts[test[0].category]
    told, found = (next(calibrated.predict([s])) for s in (test[0], replace(test[0], category="")))
    assert found.category == test[0].category
    for prediction in (told, found):
        assert c.judge(prediction, 0.4).p_value == own.p_value(prediction.score)


def test_works_inside_others(good, test):
    tiled = al.create("tiled", inner=make(steps=1), tile=48, overlap=16).fit(good[:6])
    assert len(list(tiled.predict(test[:2]))) == 2


def test_says_what_it_learnt(fitted):
    assert "3 categories" in fitted.state()
    assert "our reading" in fitted.state()
    assert PNPT().state() == ""


def test_wrong_input_is_named(good):
    for settings, words in (
        ({"image_size": 100}, "multiple of 16; got 100"),
        ({"width": 100}, "multiple of 4 x heads"),
        ({"top_t": 0}, "top_t of 1 or more"),
        ({"patience": 3}, "patience needs select='pseudo'"),
        ({"neighbours": 4}, "odd window of fewer than 4 cells"),
        ({"neighbours": 5}, "odd window of fewer than 4 cells"),
    ):
        with pytest.raises(WrongInput, match=words):
            make(**settings).fit(good)
    with pytest.raises(WrongInput, match=r"at least 2 normal pictures.*got 1 \(pictures kept aside"):
        make().fit(good[:1])
    with pytest.raises(WrongInput, match="there is one of 'leather'"):
        make().fit([*good[:3], good[8]])
    with pytest.raises(WrongInput, match="copies of one"):
        make().fit([sample("a", grey(100)), sample("b", grey(101))])
