"""The MVTec AD reader: errors, and strange files. Reading itself is checked by the contract."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from anomalens.datasets.mvtec import CARD, MVTecAD
from anomalens.datasets.procedural import Procedural
from anomalens.errors import Unreadable, WrongInput


@pytest.fixture
def root(tmp_path):
    for category in ("gear", "wood"):
        Procedural(category, 32, train_count=2, good_count=1, bad_count=4).write(tmp_path / category)
    return tmp_path


def test_categories_and_card(root):
    assert MVTecAD(root, "gear").categories == ("gear", "wood")
    assert len(CARD.categories) == 15
    assert CARD.pictures == (3629, 1725)
    assert CARD.commercial is False


def test_a_wrong_category_gets_the_names_that_are_there(root):
    with pytest.raises(WrongInput, match=r"no bottle/train/good/\*\.png in .*categories there: gear, wood"):
        MVTecAD(root, "bottle").train()


def test_a_root_that_is_a_category(root):
    with pytest.raises(WrongInput, match="is one category itself"):
        MVTecAD(root / "gear", "gear").train()
    with pytest.raises(WrongInput, match="is one category itself"):
        MVTecAD(root / "gear", "").test()


def test_a_root_that_is_not_there(root):
    with pytest.raises(WrongInput, match="does not exist"):
        MVTecAD(root / "mvtec", "gear").train()


def test_hidden_files_are_left_out(root):
    (root / "gear/train/good/._000.png").write_bytes(b"resource fork")
    assert [s.id for s in MVTecAD(root, "gear").train()] == ["gear/train/good/000.png", "gear/train/good/001.png"]


def test_masks_of_another_size_or_missing(root):
    bad = next(s for s in MVTecAD(root, "gear").test() if s.defect == "dent")
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(bad.mask.path)
    with pytest.raises(WrongInput, match=r"32 x 16 pixels, its picture .* has 32 x 32"):
        bad.mask.read()
    (root / "gear/ground_truth/dent/000_mask.png").unlink()
    with pytest.raises(Unreadable, match="does not exist"):
        bad.mask.read()
