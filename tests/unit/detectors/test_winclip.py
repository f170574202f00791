"""WinCLIP on a small CLIP with random weights: what must hold whatever the weights are."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

import anomalens as al
from anomalens.backbones import clip as clips
from anomalens.calibrate import fit_calibrated
from anomalens.detectors.winclip import WinCLIP, caoyunkang_input, cover, harmonic, windows
from anomalens.errors import WrongInput
from anomalens.types import Sample, View

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

TINY = "clip:tiny?weights=random"


def make(**settings) -> WinCLIP:
    return WinCLIP(**{"backbone": TINY, "image_size": 96, "device": "cpu", **settings})  # 6 x 6 patches


def picture(seed: int, shape=(70, 90)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 6, 3))
    return np.kron(coarse, np.ones((16, 16, 1)))[: shape[0], : shape[1]].astype(np.uint8)


def sample(seed: int, category: str = "") -> Sample:
    return Sample(f"{category}/{seed}", {"image": View("image", lambda: picture(seed))}, category)


@pytest.fixture(scope="module")
def detector() -> WinCLIP:
    return make()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def traced(detector, pixels):
    return detector.trace(pixels, "metal_nut")


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("templates", "normal", "abnormal"), [("paper22", 154, 88), ("anomalib21", 147, 84)])
def test_the_number_of_sentences_and_the_length_of_their_means(templates, normal, abnormal):
    detector = make(templates=templates)
    sentences = detector.sentences("metal_nut")
    assert [len(sentences["normal"]), len(sentences["abnormal"])] == [normal, abnormal]
    distinct = {"paper22": 22, "anomalib21": 20}[templates]  # one of the 21 stands there twice
    assert [len(set(s)) for s in sentences.values()] == [7 * distinct, 4 * distinct]
    assert all(s.endswith(".") and "metal_nut" in s for group in sentences.values() for s in group)
    assert torch.allclose(detector.describe("metal_nut")["T"].norm(dim=-1), torch.ones(2), atol=1e-6)


def test_group_vectors_are_means_of_features_that_keep_their_length(detector):
    told = detector.describe("bolt")
    normal = told["text.normal.sentence_features"].numpy()
    assert np.allclose(told["T_raw"][0], normal.mean(axis=0), atol=1e-6)
    of_units = (normal / np.linalg.norm(normal, axis=1, keepdims=True)).mean(axis=0)
    assert np.abs(told["T"][0].numpy() - of_units / np.linalg.norm(of_units)).max() > 1e-6


def test_names_periods_and_spaces():
    assert make(period=False).sentences("bolt")["abnormal"][0] == "a cropped photo of the damaged bolt"
    assert make(plain_names=True).sentences("metal_nut")["normal"][0] == "a cropped photo of the metal nut."
    assert not make(variant="caoyunkang").full_stop
    assert [make().temperature, make(variant="caoyunkang").temperature, make(tau=0.2).temperature] == [0.07, 0.01, 0.2]


def test_a_name_is_read_once(detector, monkeypatch):
    told = detector.describe("washer")
    monkeypatch.setattr(clips, "tokenise", lambda *_: pytest.fail("read again"))
    assert detector.describe("washer") is told


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "count"), [(2, 196), (3, 169)])
def test_windows_cover_the_grid(s, count):
    index, covers = windows(15, 15, s), cover(15, 15, s)
    assert index.shape == (count, s * s)
    assert np.array_equal(index[0], [15 * y + x for y in range(s) for x in range(s)])
    times = covers.sum(axis=0).reshape(15, 15)
    assert [times[0, 0], times[0, -1], times[-1, 0], times[-1, -1]] == [1, 1, 1, 1]
    assert (times[s - 1 : 1 - s, s - 1 : 1 - s] == s * s).all()


def test_windows_of_a_grid_that_is_not_square():
    seen = [sorted(w) for w in windows(2, 3, 2).tolist()]
    assert seen == [[0, 1, 3, 4], [1, 2, 4, 5]]


def test_a_window_is_a_picture_of_its_own_tokens(detector, traced, pixels):
    """One window after the other, from pixels: patches and their own positions, class token, blocks, projection."""
    clip = detector.network()
    visual = clip.visual
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)  # (B, N, C)
    positions = clip.positions(6, 6)
    for s in (2, 3):
        for i, places in enumerate(windows(6, 6, s)):
            for b in range(len(pixels)):
                first = visual.class_embedding + positions[0]
                own = [patches[b, p] + positions[1 + p] for p in places]
                x, _ = visual.transformer(visual.ln_pre(torch.stack([first, *own])[None]))
                alone = visual.ln_post(x[0, 0]) @ visual.proj
                assert torch.allclose(alone, traced[f"window_embedding.s{s}"][b, i], atol=1e-5)


def test_windows_differ_and_are_not_the_whole_picture(traced):
    for s in (2, 3):
        rows = torch.nn.functional.normalize(traced[f"window_embedding.s{s}"][0], dim=-1)
        assert (rows @ rows.T - torch.eye(len(rows))).max() < 0.9999
        whole = torch.nn.functional.normalize(traced["image_embedding"][0], dim=-1)
        assert (rows @ whole).max() < 0.9999


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_change_nothing(traced, pixels, chunk):
    other = make(window_chunk=chunk).trace(pixels, "metal_nut")
    assert torch.allclose(other["map"], traced["map"], atol=1e-6)
    assert torch.allclose(other["score"], traced["score"], atol=1e-6)


# --- zero-shot --------------------------------------------------------------------------------------------------------


def test_harmonic_means_by_hand():
    values = torch.tensor([[1.0, 0.75, 0.5, 0.25]])
    wanted = [[1, 0.8571, 0.75], [0.6667, 0.48, 0.375], [0.5, 0.3333, 0.25]]
    assert np.allclose(harmonic(values, cover(3, 3, 2)).reshape(3, 3), wanted, atol=1e-4)
    assert torch.isfinite(harmonic(torch.zeros(1, 4), cover(3, 3, 2))).all()


def test_the_map_is_the_harmonic_mean_over_scales(traced):
    a0 = traced["a0"][:, None, None]
    assert torch.allclose(traced["M0"], 3 / (1 / a0 + 1 / traced["H.s2"] + 1 / traced["H.s3"]), atol=1e-6)
    assert torch.equal(traced["score"], traced["a0"])
    assert traced["map"].shape == (3, 96, 96)
    assert 0 <= traced["map"].min() <= traced["map"].max() <= 1


def test_windows_that_say_what_the_picture_says_give_its_score(detector, traced):
    whole = traced["image_embedding"]
    seen = {f"window_embedding.s{s}": whole[:, None].expand(-1, len(windows(6, 6, s)), -1) for s in (2, 3)}
    judged = detector.judge({**seen, "image_embedding": whole}, traced["T"], None, (96, 96))
    assert torch.allclose(judged["map"], judged["a0"][:, None, None].expand(-1, 96, 96), atol=1e-6)


def test_red_and_blue_exchanged_is_another_picture(detector):
    (a,), (b,) = (list(detector.predict([s])) for s in (sample(1), mirrored(sample(1))))
    assert abs(a.score - b.score) > 1e-4
    assert np.abs(a.map - b.map).max() > 1e-4


def mirrored(given: Sample) -> Sample:
    pixels = np.ascontiguousarray(given.image()[..., ::-1])
    return replace(given, views={"image": View("image", lambda: pixels)})


def test_the_score_does_not_depend_on_the_batch(detector):
    samples = [sample(i, category) for i, category in enumerate(["bolt", "nut", "bolt", "", "nut"])]
    together = list(detector.predict(samples))
    for one, other in zip(samples, together, strict=True):
        (alone,) = detector.predict([one])
        assert alone.score == pytest.approx(other.score, abs=1e-6)
        assert np.allclose(alone.map, other.map, atol=1e-6)
        assert alone.map.shape == (70, 90)


def test_the_name_of_the_thing_matters_and_object_names_all(detector):
    bolt, nut = (next(detector.predict([sample(1, c)])).score for c in ("bolt", "nut"))
    assert abs(bolt - nut) > 1e-6
    named = make(object="bolt")
    assert next(named.predict([sample(1, "nut")])).score == pytest.approx(bolt, abs=1e-6)
    nameless = next(detector.predict([sample(1)])).score
    assert nameless == pytest.approx(next(make(object="object").predict([sample(1)])).score, abs=1e-6)


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_tokens", ["post_ln", "pre_ln"])
def test_a_picture_among_the_references_is_normal(pixels, patch_tokens):
    judged = make(patch_tokens=patch_tokens).trace(pixels, "bolt", pixels)
    assert judged["V"].max() < 1e-6
    assert torch.allclose(judged["score"], judged["a0"] / 2, atol=1e-6)
    assert torch.allclose(judged["map"], make().trace(pixels, "bolt")["map"] / 2, atol=1e-5)


def test_distances_to_the_nearest_reference_by_loops(detector, pixels):
    judged = detector.trace(pixels[:1], "bolt", pixels[1:])
    for s in (2, 3):
        own = judged[f"window_embedding.s{s}"][0].numpy()
        memory = detector.embed(pixels[1:])[f"window_embedding.s{s}"].reshape(-1, own.shape[1]).numpy()
        slow = [
            min(0.5 * (1 - x @ r / np.linalg.norm(x) / np.linalg.norm(r)) for r in memory) for x in own.astype(float)
        ]
        assert np.allclose(judged[f"d_w.s{s}"][0], slow, atol=1e-6)
    total = (judged["V.patch"] + judged["V.s2"] + judged["V.s3"]) / 3
    assert torch.allclose(judged["V"], total)
    assert torch.allclose(judged["score"], (judged["a0"] + judged["V"].amax((1, 2))) / 2)
    summed = make(fusion="sum").trace(pixels[:1], "bolt", pixels[1:])
    assert torch.allclose(summed["map"], 2 * judged["map"], atol=1e-6)
    assert torch.allclose(summed["score"], judged["score"], atol=1e-6)


def test_fit_is_the_same_as_references_given_by_hand(detector):
    fitted = make(object="bolt").fit([sample(i) for i in range(3)])
    (judged,) = fitted.predict([sample(9)])
    stacked = torch.cat([pixels for _, pixels in detector.read([sample(i) for i in range(3)])])
    ((_, query),) = detector.read([sample(9)])
    assert judged.score == pytest.approx(detector.trace(query, "bolt", stacked)["score"].item(), abs=1e-6)


def test_every_category_has_its_own_references():
    both = make().fit([sample(1, "bolt"), sample(2, "nut"), sample(3, "bolt")])
    bolts = make().fit([sample(1, "bolt"), sample(3, "bolt")])
    queries = [sample(7, "bolt"), sample(1, "nut"), sample(8, "bolt")]
    found = [p.score for p in both.predict(queries)]
    assert found[::2] == pytest.approx([p.score for p in bolts.predict(queries[::2])], abs=1e-6)
    assert both.state() == "Of the good pictures WinCLIP keeps as references: 2 of 2 of bolt, 1 of 1 of nut."
    with pytest.raises(WrongInput, match=r"gear/5.*'gear'.*bolt, nut"):
        list(both.predict([sample(5, "gear")]))
    with pytest.raises(WrongInput, match="'gear'"):  # one category, but a different one
        list(bolts.predict([sample(5, "gear")]))


def test_references_without_a_category_serve_all_and_name_the_thing():
    """A detector fitted on a folder and used on a labelled one keeps the sentences it was calibrated with."""
    fitted = make().fit([sample(1), sample(2)])
    named, nameless = (next(fitted.predict([s])).score for s in (sample(5, "bolt"), sample(5)))
    assert named == nameless
    of_bolts = make().fit([sample(1, "bolt"), sample(2, "bolt")])
    named, nameless = (next(of_bolts.predict([s])).score for s in (sample(5, "bolt"), sample(5)))
    assert named == nameless


def test_object_makes_one_memory_of_all_categories():
    fitted = make(object="part").fit([sample(1, "bolt"), sample(2, "nut")])
    assert list(fitted.memory) == [""]
    assert len(fitted.memory[""]["s2"]) == 2 * 25
    assert np.isfinite(next(fitted.predict([sample(5, "gear")])).score)


def test_references_are_drawn_evenly_from_a_stream():
    chosen = np.zeros(10)
    for seed in range(300):
        drawn, seen = make(references=3, seed=seed).draw(sample(i) for i in range(10))
        assert seen == {"": 10}
        assert len({s.id for s in drawn[""]}) == 3
        chosen[[int(s.id[1:]) for s in drawn[""]]] += 1
    assert np.abs(chosen - 90).max() < 4 * np.sqrt(300 * 0.3 * 0.7)  # four standard deviations
    drawn, _ = make(references=0).draw(sample(i) for i in range(30))
    assert len(drawn[""]) == 30


def test_saved_with_and_without_references(tmp_path):
    queries = [sample(7, "bolt"), sample(8, "nut")]
    for i, fitted in enumerate((make(object="bolt"), make().fit([sample(1, "bolt"), sample(2, "nut")]))):
        al.save(fitted, tmp_path / f"{i}")
        loaded = al.load(tmp_path / f"{i}")
        for a, b in zip(fitted.predict(queries), loaded.predict(queries), strict=True):
            assert a.score == b.score
            assert np.array_equal(a.map, b.map)
    with pytest.raises(WrongInput, match="other weights"):
        list(al.load(tmp_path / "1", backbone=f"{TINY}&seed=1").predict(queries))


def test_fit_on_nothing_is_zero_shot_again():
    fitted = make().fit([sample(1)])
    fitted.fit([])
    assert fitted.memory is None
    assert fitted.state() == ""
    assert next(fitted.predict([sample(5)])).score == next(make().predict([sample(5)])).score


def test_calibration_fits_references_though_none_are_needed():
    detector = fit_calibrated(make(), [sample(i) for i in range(6)], folds=2)
    assert detector.calibration.how == "cross-fitted"
    assert detector.memory[""]["kept"] == 6
    within = al.create("within", inner=make())
    assert within.learns
    assert not within.needs_fit


# --- the variant with the errors --------------------------------------------------------------------------------------


def test_the_variant_by_loops(pixels):
    detector = make(variant="caoyunkang")
    judged = detector.trace(pixels[:1], "bolt", pixels[1:])
    T = judged["T"].numpy().astype(float)
    textual, visual = np.zeros((2, 36)), np.zeros((2, 36))
    memories = {s: judged[f"memory.s{s}"].numpy() for s in (2, 3)}
    for k, s in enumerate((2, 3)):
        inverse, away = [[] for _ in range(36)], [[] for _ in range(36)]
        for i, places in enumerate(windows(6, 6, s)):
            x = judged[f"window_embedding.s{s}"][0, i].numpy().astype(float)
            x /= np.linalg.norm(x)
            logits = np.exp((T @ x - 1) * 100)
            memory = memories[2] if i == 0 else memories[s]  # one window late
            for p in places:
                inverse[p].append(logits.sum() / logits[0])
                away[p].append(0.5 * (1 - (memory @ x).max()))
        textual[k], visual[k] = [np.mean(v) for v in inverse], [np.mean(v) for v in away]
    textual, visual = 1 - 1 / textual.mean(axis=0), visual.mean(axis=0)
    assert np.allclose(judged["textual_map"].flatten(), textual, atol=1e-5)
    assert np.allclose(judged["visual_map"].flatten(), visual, atol=1e-6)
    assert judged["map"].shape == (1, 400, 400)
    assert judged["score"].item() == judged["map"].max().item()
    small = detector.trace(pixels[:1], "bolt", pixels[1:], size=(6, 6))
    assert np.allclose(small["map"].flatten(), textual * visual / (textual + visual), atol=1e-5)
    assert torch.allclose(detector.trace(pixels[:1], "bolt", size=(6, 6))["map"], judged["textual_map"] / 2, atol=1e-5)


def test_the_variant_remembers_the_last_batch_only():
    fitted = make(variant="caoyunkang", batch_size=2).fit([sample(i) for i in range(5)])
    last = make(variant="caoyunkang", batch_size=2).fit([sample(4)])
    assert np.allclose(fitted.memory[""]["s3"], last.memory[""]["s3"], atol=1e-6)
    assert make(batch_size=2).fit([sample(i) for i in range(5)]).memory[""]["s3"].shape[0] == 5 * 16


def test_the_variant_reads_references_and_test_pictures_differently():
    given = picture(3)
    gallery, test = caoyunkang_input(given, True), caoyunkang_input(given, False)
    assert gallery.shape == (1024, 1024, 3)
    assert np.array_equal(gallery[..., ::-1], test)
    assert np.array_equal(gallery[[0, -1], [0, -1]], given[[0, -1], [0, -1]])
    fitted = make(variant="caoyunkang").fit([sample(1)])
    right, wrong = (next(fitted.predict([s])).score for s in (mirrored(sample(1)), sample(1)))
    assert right < wrong


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scales": ()}, "scales"), ({"scales": (2, 2)}, "scales"), ({"scales": (0,)}, "scales"), ({"tau": 0.0}, "tau"),
        ({"references": -1}, "references"), ({"window_chunk": 0}, "window_chunk"), ({"image_size": 0}, "image_size"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(WrongInput, match=sentence):
        make(**settings)


@pytest.mark.parametrize(
    ("settings", "advice"), [({"image_size": 100}, "set image_size to 96"), ({"scales": (9,)}, "144")]
)
def test_pictures_that_do_not_hold_the_windows(settings, advice):
    with pytest.raises(WrongInput, match=advice):
        list(make(**settings).predict([sample(1)]))


def test_half_precision_is_close():
    full, half = (next(make(precision=p).predict([sample(1)])).score for p in ("float32", "bfloat16"))
    assert half == pytest.approx(full, abs=0.02)
    assert half != full


def test_the_copies_of_a_detector_share_its_network(monkeypatch):
    detector = make()
    detector.network()
    monkeypatch.setattr(clips, "load", lambda *_, **__: pytest.fail("loaded again"))
    assert detector.unfitted().network() is detector.network()


def test_the_default_weights_are_those_of_epoch_31():
    assert clips.training(clips.parse(WinCLIP().backbone))["hf_hub"].rstrip("/").endswith("laion400m_e31")
    assert clips.activation_of(WinCLIP().backbone) == "gelu"


# --- with real weights ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "image", "pixel"), [("mvtec", (90.4, 1.0), (82.3, 1.5)), ("visa", (75.5, 1.0), (73.2, 2.0))]
)
def test_zero_shot_reproduces_the_published_means(dataset, image, pixel):
    """ANOMALENS_WINCLIP: the backbone with its file. ANOMALENS_MVTEC, ANOMALENS_VISA: roots of the data sets."""
    backbone, root = os.environ.get("ANOMALENS_WINCLIP"), os.environ.get(f"ANOMALENS_{dataset.upper()}")
    if not backbone or not root:
        pytest.skip(f"needs ANOMALENS_WINCLIP=clip:ViT-B-16-plus-240@FILE and ANOMALENS_{dataset.upper()}=FOLDER")
    from anomalens import datasets, metrics

    reader = datasets.reader(dataset)
    found = []
    for category in datasets.card(dataset).categories:
        test = reader(root, category).test()
        predictions = list(al.create("winclip", backbone=backbone).predict(test))
        labels = np.array([s.label for s in test], bool)
        masks = [s.mask.read() if s.mask else None for s in test]
        of_images = metrics.image(np.array([p.score for p in predictions]), labels)
        of_pixels = metrics.pixel([p.map for p in predictions], masks)
        found.append((100 * of_images["auroc"].value, 100 * of_pixels["auroc"].value))
    means = np.mean(found, axis=0)
    assert means[0] == pytest.approx(image[0], abs=image[1])
    assert means[1] == pytest.approx(pixel[0], abs=pixel[1])
