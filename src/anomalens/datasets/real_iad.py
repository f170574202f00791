"""Real-IAD, read from the folders that its archives unpack to, divided by its JSON files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import WrongInput
from ..types import DatasetCard, Sample
from ._files import mask_view
from ._layouts import folders, in_order, make_sample, not_found

CARD = DatasetCard(
    title="Real-IAD",
    summary="Thirty kinds of small parts, each part from five sides; every side is a sample of its own.",
    home="https://realiad4ad.github.io/Real-IAD/",
    citation="Wang, Zhu, Gao, Gan, Zhang, Gu, Qian, Chen, Ma: Real-IAD: A Real-World Multi-View Dataset for "
    "Benchmarking Versatile Industrial Anomaly Detection, CVPR 2024, https://arxiv.org/abs/2403.12580",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural",),
    layout="<root>/{realiad_jsons/<category>.json, realiad_<size>/<category>/{OK, NG/<defect>}/<part>/*}",
    masks=True,
    pictures=(36465, 114585),
    categories=("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts", "pcb",
                "phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base",
                "sim_card_set", "switch", "tape", "terminalblock", "toothbrush", "toy", "toy_brick", "transistor1",
                "u_block", "usb", "usb_adaptor", "vcpill", "wooden_beads", "woodstick", "zipper"),
)  # fmt: skip


@dataclass(frozen=True)
class RealIAD:
    """One category.

    pictures: folder of the pictures; "" is the one realiad_* folder that has the category.
    division: folder of the JSON files: realiad_jsons is one class at a time, realiad_jsons_sv one side of each part,
        realiad_jsons_fuiad_0.1 a training part with that share of anomalous pictures, which `train` leaves out.
    """

    root: str | Path
    category: str
    pictures: str = ""
    division: str = "realiad_jsons"

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in self._tables.glob("*.json")))

    def train(self) -> list[Sample]:
        return [s for s in self._part("train") if s.label == 0]

    def test(self) -> list[Sample]:
        return self._part("test")

    @property
    def _tables(self) -> Path:
        """The folder of JSON files; the archive has a folder of the same name inside."""
        outer = Path(self.root) / self.division
        beside = Path(self.root) / "realiad_jsons" / self.division
        return beside if beside.is_dir() else outer

    @cached_property
    def _table(self) -> dict[str, Any]:
        path = self._tables / f"{self.category}.json"
        if not path.is_file():
            raise not_found("RealIAD", self.root, f"{self.division}/{self.category or '<category>'}.json")
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            table["meta"], table["train"], table["test"]
        except (ValueError, KeyError, TypeError):
            raise WrongInput(f"{path} has no meta, train and test; it is not a division of Real-IAD.") from None
        return table

    @cached_property
    def _folder(self) -> Path:
        """Where the paths of the table begin."""
        prefix = self._table["meta"].get("prefix") or f"{self.category}/"
        root = Path(self.root)
        named = [root / self.pictures] if self.pictures else [f for f in folders(root) if "json" not in f.name]
        found = [f / prefix for f in [*named, root] if (f / prefix).is_dir()]
        if not found:
            raise not_found("RealIAD", root, f"{self.pictures or 'realiad_<size>'}/{prefix}")
        if len(found) > 1:
            names = ", ".join(f.relative_to(root).parts[0] for f in found)
            raise WrongInput(f"{root} has pictures of {self.category} in {names}; choose one with pictures=....")
        return found[0]

    def _part(self, part: str) -> list[Sample]:
        return in_order(self._sample(entry) for entry in self._table[part])

    def _sample(self, entry: dict[str, Any]) -> Sample:
        path = self._folder / entry["image_path"]
        if entry["anomaly_class"] == self._table["meta"].get("normal_class", "OK"):
            return make_sample(self.root, path, self.category, "good")
        mask = mask_view([self._folder / entry["mask_path"]], path) if entry.get("mask_path") else None
        return make_sample(self.root, path, self.category, entry["anomaly_class"], mask)


DATASET = RealIAD
