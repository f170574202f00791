"""What every reader owes its user; readers are found by listing the folder."""

from __future__ import annotations

import ast
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

import anomalens
from anomalens import datasets
from anomalens.datasets.procedural import Procedural
from anomalens.errors import UnknownName, WrongInput
from anomalens.types import DatasetCard

from ..unit.datasets import trees

SIZE = 48


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with one category in the usual layout."""
    root = tmp_path_factory.mktemp("root")
    Procedural("cloth", SIZE, train_count=4, good_count=2, bad_count=4).write(root / "cloth")
    return root


@pytest.fixture(scope="module", params=datasets.names())
def tree(request, tmp_path_factory) -> tuple[str, trees.Tree]:
    """A reader's name and the tree that its function in trees.py wrote: a new reader needs one there, nothing here."""
    return request.param, trees.write(request.param, tmp_path_factory.mktemp("tree"))


@pytest.fixture
def expected(tree) -> trees.Tree:
    return tree[1]


@pytest.fixture
def dataset(tree):
    return tree[1].reader(tree[0])


@pytest.mark.parametrize("name", datasets.names())
def test_the_card_says_everything(name):
    card = datasets.card(name)
    assert isinstance(card, DatasetCard)
    assert card.title
    assert card.summary.endswith(".")
    assert card.licence
    assert card.layout
    assert set(card.views) <= {"image", "lights", "depth", "normals", "points", "video", "series"}
    assert "image" in card.views
    assert card.levels
    assert set(card.levels) <= {"structural", "semantic"}
    assert not card.home or card.home.startswith("https://")
    assert all(count >= 0 for count in card.pictures)
    assert card.categories == tuple(sorted(card.categories))


def test_every_field_of_the_card_is_given_in_every_file():
    fields = {f.name for f in dataclasses.fields(DatasetCard)}
    for name in datasets.names():
        path = Path(datasets.__file__).parent / f"{name.replace('-', '_')}.py"
        calls = [n.value for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.Assign)]
        card = next(c for c in calls if isinstance(c, ast.Call) and getattr(c.func, "id", "") == "DatasetCard")
        assert {k.arg for k in card.keywords} == fields


def test_train_is_normal_and_test_has_what_was_written(dataset, expected):
    train, test = dataset.train(), dataset.test()
    assert len(train) == expected.train
    assert {s.label for s in train} <= {0}
    assert sum(s.label == 0 for s in test) == expected.good
    assert sum(s.label == 1 for s in test) == expected.bad
    assert all(s.mask is None for s in train)
    assert all((s.mask is not None) == (s.label == 1 and expected.masks) for s in test)
    assert all((s.defect == "good") == (s.label == 0) for s in (*train, *test))
    assert all(tuple(s.views) == expected.views for s in (*train, *test))
    if expected.defects:
        assert {s.defect for s in test} - {"good"} == expected.defects


def test_categories_are_those_of_the_root(dataset, expected):
    if expected.categories:
        assert dataset.categories == expected.categories
    for sample in (*dataset.train(), *dataset.test()):
        assert sample.category.split("/")[0] in dataset.categories
    assert all(s.category.startswith(expected.category) for s in dataset.test())


def test_what_is_read_is_what_the_card_says(tree, expected):
    card = datasets.card(tree[0])
    assert card.masks == expected.masks
    if card.categories and expected.categories:
        known = {"mvtec"}  # reads any category of its layout
        assert tree[0] in known or set(expected.categories) <= set(card.categories)


def test_ids_are_relative_unique_and_in_order(dataset):
    for some in (dataset.train(), dataset.test()):
        ids = [s.id for s in some]
        assert ids == sorted(ids)
    ids = [s.id for s in (*dataset.train(), *dataset.test())]
    assert len(set(ids)) == len(ids)
    for i in ids:
        assert "/" in i
        assert "\\" not in i
        assert not PurePosixPath(i).is_absolute()
        assert ".." not in PurePosixPath(i).parts


def test_pictures_and_masks_have_one_size(dataset, expected):
    for sample in dataset.test():
        picture = sample.image()
        assert picture.shape == (*expected.size, 3)
        assert picture.dtype == np.uint8
        if sample.mask:
            mask = sample.mask.read()
            assert mask.dtype == bool
            assert mask.shape == picture.shape[:2]
            assert mask.any()
            assert not mask.all()
            assert pickle.loads(pickle.dumps(sample.mask)).read().sum() == mask.sum()


def test_views_can_be_pickled_and_know_their_file(dataset):
    for sample in dataset.test():
        for name, view in sample.views.items():
            assert view.name == name
            again = pickle.loads(pickle.dumps(view))
            assert np.array_equal(again.read(), view.read())
            if view.path is not None:
                assert Path(view.path).is_file()


def test_listing_twice_gives_the_same(dataset):
    first, second = dataset.test(), dataset.test()
    assert [s.id for s in first] == [s.id for s in second]
    assert all(np.array_equal(a.image(), b.image()) for a, b in zip(first, second, strict=True))


def test_all_readers_of_the_same_files_agree(root):
    """The folder reader, the MVTec reader and the drawn original give the same samples."""
    drawn = Procedural("cloth", SIZE, train_count=4, good_count=2, bad_count=4)
    for name in ("folder", "mvtec"):
        cls = datasets.reader(name)
        read = cls(root=root) if name == "folder" else cls(root=root, category="cloth")
        for ours, theirs in ((drawn.train(), read.train()), (drawn.test(), read.test())):
            assert [(s.id, s.label, s.defect, s.category) for s in ours] == [
                (s.id, s.label, s.defect, s.category) for s in theirs
            ]
            for a, b in zip(ours, theirs, strict=True):
                assert np.array_equal(a.image(), b.image())
                assert (a.mask is None) == (b.mask is None)
                if a.mask and b.mask:
                    assert np.array_equal(a.mask.read(), b.mask.read())


@pytest.mark.parametrize("name", datasets.names())
def test_a_wrong_root_is_answered_with_what_is_there(name, tmp_path):
    """One sentence that names the root; a folder with something else in it, and no folder at all."""
    cls = datasets.reader(name)
    fields = {f.name for f in dataclasses.fields(cls)}
    if "root" not in fields:
        pytest.skip("it is drawn")
    card = datasets.card(name)
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "notes.txt").write_text("beach")
    given = {"category": (*card.categories, "any")[0]} if "category" in fields else {}
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(WrongInput) as caught:
            cls(root=root, **given).test()
        message = str(caught.value)
        assert str(root) in message
        assert message.endswith(".")
        if name not in ("folder", "mvtec") and root == tmp_path:
            assert "looked for" in message
            assert "holiday" in message


def test_a_misspelt_reader_gets_a_hint():
    with pytest.raises(UnknownName, match="did you mean 'mvtec'"):
        datasets.reader("mvtek")


def test_names_and_cards_load_nothing_heavy():
    code = "from anomalens import datasets as d; [d.card(n) for n in d.names()]; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {m.split(".")[0] for m in run.stdout.split()} & {"numpy", "PIL", "torch"}


def test_samples_is_a_public_name(root):
    assert len(anomalens.samples(root)) == 10
