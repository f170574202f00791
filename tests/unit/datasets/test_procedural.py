"""Drawn categories: the same bytes every time, masks that tell the truth, folders that can be read back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from anomalens import datasets
from anomalens.datasets import open_folder
from anomalens.datasets._categories import ORDER, RECIPES
from anomalens.datasets.procedural import LIGHTS, MARK, Procedural, Shot, mask, picture
from anomalens.errors import UnknownName, WrongInput

SIZE = 96
KINDS = [(category, kind) for category, recipe in RECIPES.items() for kind in recipe.kinds]


def shot(category: str, kind: str, index: int = 0, size: int = SIZE) -> Shot:
    return Shot(category, size, 3, "bad", index, kind)


def dilated(area: np.ndarray, by: int) -> np.ndarray:
    """Every pixel within `by` rows and columns of the area."""
    wide = np.zeros_like(area)
    for y, x in np.argwhere(area):
        wide[max(0, y - by) : y + by + 1, max(0, x - by) : x + by + 1] = True
    return wide


@pytest.mark.parametrize(("category", "kind"), KINDS)
def test_the_mask_is_where_the_picture_differs(category, kind):
    for index in range(2):
        bad = shot(category, kind, index)
        area = mask(bad)
        views = [f"light_{k}" for k in range(LIGHTS)] if category == "relief" else ["image"]
        with_defect = np.stack([picture(bad, v) for v in views]).astype(int)
        without = np.stack([picture(replace(bad, kind=""), v) for v in views]).astype(int)
        change = abs(with_defect - without).max(axis=(0, 3))
        assert 4 <= area.sum() < 0.35 * area.size
        assert not (change[~dilated(area, 7)]).any(), "the picture changes far from the mask"
        strong = change > 24
        assert strong.any(), "the defect cannot be seen"
        assert (strong & dilated(area, 1)).sum() > 0.25 * min(area.sum(), strong.sum())


@pytest.mark.parametrize("category", RECIPES)
def test_two_instances_draw_the_same_bytes(category):
    first, second = Procedural(category, 64, seed=5, bad_count=2), Procedural(category, 64, seed=5, bad_count=2)
    for a, b in zip([*first.train()[:1], *first.test()[-2:]], [*second.train()[:1], *second.test()[-2:]], strict=True):
        assert all(a.image(v).tobytes() == b.image(v).tobytes() for v in a.views)


def test_another_process_draws_the_same_bytes():
    """Nothing depends on the hash seed of the process."""
    code = (
        "import zlib; from anomalens.datasets.procedural import Procedural\n"
        "print([zlib.crc32(s.image().tobytes()) for c in ('board', 'tray') for s in Procedural(c, 64).test()[:3]])"
    )
    run = [sys.executable, "-c", code]
    outputs = [subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert outputs[0] == outputs[1] != ""


def test_seed_number_and_split_change_the_picture():
    base = Shot("cloth", 64, 0, "train", 0, "")
    others = [replace(base, seed=1), replace(base, index=1), replace(base, split="good")]
    assert all((picture(o) != picture(base)).mean() > 0.5 for o in others)


def test_asking_for_more_changes_nothing_before():
    few = Procedural("wood", 48, train_count=2, good_count=1, bad_count=4)
    many = Procedural("wood", 48, train_count=9, good_count=7, bad_count=23)
    known = {s.id: s for s in (*many.train(), *many.test())}
    for sample in (*few.train(), *few.test()):
        assert np.array_equal(known[sample.id].image(), sample.image())


def test_counts_and_kinds():
    drawn = Procedural("gear", 48, train_count=3, good_count=2, bad_count=9)
    assert len(drawn.train()) == 3
    defects = Counter(s.defect for s in drawn.test())
    assert defects == {"good": 2, "crack": 3, "dent": 2, "missing": 2, "scratch": 2}
    assert drawn.kinds == ("crack", "dent", "missing", "scratch")
    assert Procedural("gear", train_count=0, good_count=0, bad_count=0).test() == []


def test_the_card_lists_the_categories():
    assert datasets.card("procedural").categories == tuple(RECIPES) == Procedural().categories


@pytest.mark.parametrize("category", RECIPES)
def test_a_category_looks_alike_at_every_size(category):
    """A picture of double size, averaged in blocks of four, is near the one of single size."""
    small = picture(Shot(category, 96, 0, "train", 1, "")).astype(float)
    large = picture(Shot(category, 192, 0, "train", 1, "")).astype(float)
    halved = large.reshape(96, 2, 96, 2, 3).mean((1, 3))
    blocks = [p.reshape(12, 8, 12, 8, 3).mean((1, 3)) for p in (small, halved)]
    assert abs(blocks[0] - blocks[1]).mean() < 8


def test_normal_pictures_vary_but_belong_together():
    for category in ("cap", "gear", "board"):
        one, two = (picture(Shot(category, SIZE, 0, "train", i, "")).astype(float) for i in (0, 1))
        other = picture(Shot("cookie", SIZE, 0, "train", 0, "")).astype(float)
        assert 1 < abs(one - two).mean() < 0.6 * abs(one - other).mean()


# The tray.


def test_the_tray_tells_what_lies_on_it():
    tray = Procedural("tray", 128, train_count=2, good_count=2, bad_count=12)
    right = Counter((name, cell) for cell, names in ORDER.items() for name in names)
    for sample in (*tray.train(), *tray.test()):
        scene = tray.scene(sample.id)
        found = Counter((part.name, part.cell) for part in scene)
        surplus, lacking = found - right, right - found
        expected = {"good": (0, 0), "missing": (0, 1), "extra": (1, 0), "misplaced": (2, 2)}[sample.defect]
        assert (surplus.total(), lacking.total()) == expected
        if sample.defect == "misplaced":  # the same parts, in other cells
            assert Counter(name for name, _ in surplus) == Counter(name for name, _ in lacking)
        for part in scene:
            x0, y0, x1, y1 = part.box
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
            column, row = (x0 + x1) / 2 / 128, (y0 + y1) / 2 / 128
            assert abs(column - (0.2 + 0.3 * part.cell[1])) < 0.15
            assert abs(row - (0.3 + 0.4 * part.cell[0])) < 0.2


def test_parts_on_the_tray_do_not_overlap():
    tray = Procedural("tray", 128, train_count=6, good_count=0, bad_count=6)
    for sample in (*tray.train(), *tray.test()):
        boxes = [part.box for part in tray.scene(sample.id) if part.name not in ("bolt", "pin")]  # slanted ones
        for k, a in enumerate(boxes):
            for b in boxes[k + 1 :]:
                wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                assert wide <= 3 or tall <= 3


def test_only_the_tray_has_a_scene():
    with pytest.raises(WrongInput, match="tray"):
        Procedural("gear").scene("gear/train/good/000.png")
    with pytest.raises(UnknownName):
        Procedural("tray").scene("tray/train/good/999.png")


# The lights.


def test_the_image_is_the_mean_of_the_lights():
    sample = Procedural("relief", 64).train()[0]
    assert list(sample.views) == [*(f"light_{k}" for k in range(LIGHTS)), "image"]
    lights = np.stack([sample.image(f"light_{k}") for k in range(LIGHTS)]).astype(float)
    assert abs(sample.image() - lights.mean(0)).max() <= 0.5
    assert all(abs(a - b).mean() > 5 for a, b in zip(lights[1:], lights, strict=False))


@pytest.mark.parametrize("kind", ["dent", "bump", "scratch"])
def test_relief_defects_hide_in_the_mean(kind):
    """A defect of the height shows in its best light far more than in the mean of all."""
    ratios = []
    for index in range(4):
        bad = shot("relief", kind, index, 128)
        area = mask(bad)

        def visible(view, bad=bad, area=area):
            change = picture(bad, view).astype(float) - picture(replace(bad, kind=""), view)
            return abs(change[area]).mean()

        ratios.append(max(visible(f"light_{k}") for k in range(LIGHTS)) / visible("image"))
    assert np.mean(ratios) > 1.5


# Writing.


@pytest.mark.parametrize("category", ["cloth", "relief"])
def test_write_and_read_back(tmp_path, category):
    drawn = Procedural(category, 48, train_count=3, good_count=2, bad_count=4)
    folder = drawn.write(tmp_path / "out")
    read = open_folder(folder)
    assert [s.id for s in read.train()] == [_file(category, s.id) for s in drawn.train()]
    assert [s.id for s in read.test()] == [_file(category, s.id) for s in drawn.test()]
    for ours, theirs in zip(drawn.test(), read.test(), strict=True):
        assert (ours.label, ours.defect, set(ours.views)) == (theirs.label, theirs.defect, set(theirs.views))
        assert all(np.array_equal(ours.image(v), theirs.image(v)) for v in ours.views)
        if ours.mask and theirs.mask:
            assert np.array_equal(ours.mask.read(), theirs.mask.read())
    assert "left alone" not in read.describe()
    assert json.loads((folder / MARK).read_text())["category"] == category


def _file(category: str, sample_id: str) -> str:
    """Several lights of one thing lie in a folder, so their id has no suffix."""
    name = sample_id.removeprefix(f"{category}/")
    return name.removesuffix(".png") if category == "relief" else name


def test_write_refuses_what_is_not_ours_and_replaces_what_is(tmp_path):
    small = Procedural("metal", 32, train_count=1, good_count=1, bad_count=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(WrongInput, match="something else"):
        small.write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongInput, match="something else"):
        small.write(tmp_path / "file")

    (tmp_path / "empty").mkdir()
    small.write(tmp_path / "empty")
    Procedural("metal", 32, train_count=2, good_count=0, bad_count=0).write(tmp_path / "empty")
    assert sorted(p.name for p in (tmp_path / "empty").rglob("*.png")) == ["000.png", "001.png"]
    (tmp_path / "empty" / "train" / "mine.txt").write_text("a note")
    with pytest.raises(WrongInput, match="something else"):
        small.write(tmp_path / "empty")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"category": "clothe"}, "did you mean 'cloth'"),
        ({"size": 8}, "32 to 2048"),
        ({"train_count": -1}, "0 or more"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(WrongInput, match=message):
        Procedural(**settings)
