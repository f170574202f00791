"""The reader of LOCO-Annotations: pairs what belongs together, and names what does not."""

from __future__ import annotations

import json
import shutil

import pytest

from anomalens.datasets.loco_annotations import LOCOAnnotations
from anomalens.datasets.mvtec_loco import MVTecLOCO
from anomalens.errors import WrongInput
from tests.support import mini_loco

CATEGORY = "screw_bag"


@pytest.fixture
def root(tmp_path):
    mini_loco.write(tmp_path, CATEGORY, train=3, validation=1, good=2, each=1)
    mini_loco.write(tmp_path, "pushpins", train=1, validation=0, good=1, each=1)
    return tmp_path


def note(root, place):
    return root / "annotations" / CATEGORY / f"{place}.json"


def test_good_and_logical_pictures_with_their_scenes_and_reasons(root):
    data = LOCOAnnotations(root, CATEGORY)
    assert data.categories == ("pushpins", CATEGORY)
    assert len(data.train()) == 3
    assert [s.defect for s in data.test()] == ["good"] * 2 + ["logical_anomalies"] * 4
    assert sum(s.defect == "structural_anomalies" for s in MVTecLOCO(root, CATEGORY).test()) == 1
    reasons = [r for s in data.test() for r in data.reasons(s)]
    assert [r.type for r in reasons] == ["quantity", "quantity", "size", "position"]
    assert "washers instead of 2" in reasons[0].text
    scene = data.oracle.parse(data.train()[0]).scene
    assert sorted(o.label for o in scene.objects) == ["nut", "nut", "screw", "screw", "washer", "washer"]
    report = data.report()
    assert (report.unmatched, report.missing, report.unknown) == ((), (), 0)


def test_what_has_no_partner_is_left_out_and_named(root):
    note(root, "train/good/001").unlink()
    note(root, "test/structural_anomalies/000").unlink()  # not annotated by those who made the annotations
    shutil.copy(note(root, "train/good/000"), note(root, "train/good/777"))
    data = LOCOAnnotations(root, CATEGORY)
    assert [s.id for s in data.train()] == [f"{CATEGORY}/train/good/{i:03d}.png" for i in (0, 2)]
    report = data.report()
    assert report.missing == (f"{CATEGORY}/train/good/001.png",)
    assert [name.endswith("train/good/777.json") for name in report.unmatched] == [True]


def test_reasons_without_a_type_are_kept_and_counted(root):
    place = note(root, "test/logical_anomalies/000")
    content = json.loads(place.read_text())
    place.write_text(json.dumps({**content, "gt": ["Quantity anomaly：one too many", "the bag is odd"]}))
    data = LOCOAnnotations(root, CATEGORY)
    sample = next(s for s in data.test() if s.label)
    assert [(r.type, r.text) for r in data.reasons(sample)] == [
        ("quantity", "one too many"),
        ("unknown", "the bag is odd"),
    ]
    assert data.report().unknown == 1


def test_annotations_may_lie_elsewhere_and_have_other_names(root, tmp_path):
    place = note(root, "train/good/000")
    for path in (root / "annotations").rglob("*.json"):
        content = json.loads(path.read_text())
        content["objects"] = content.pop("shapes")
        path.write_text(json.dumps(content))
    assert place.exists()
    (root / "annotations").rename(root / "notes")
    data = LOCOAnnotations(root, CATEGORY, root / "notes", {"shapes": "objects"})
    assert len(data.train()) == 3
    assert data.oracle.parse(data.test()[0]).scene.objects


def test_what_is_missing_is_said_in_one_sentence(root):
    with pytest.raises(WrongInput, match=r"looked for the annotations in .*nowhere, which does not exist"):
        LOCOAnnotations(root, CATEGORY, root / "nowhere").train()
    shutil.rmtree(root / "annotations" / CATEGORY)
    with pytest.raises(WrongInput, match="none of the 3 pictures of"):
        LOCOAnnotations(root, CATEGORY).train()
