"""UCSD Pedestrian, read from the folder that its archive unpacks to, frame by frame."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import WrongInput
from ..images import read_mask
from ..types import DatasetCard, Sample
from ._files import mask_view
from ._layouts import folders, in_order, make_sample, not_found, pictures, with_train

CARD = DatasetCard(
    title="UCSD Pedestrian",
    summary="Two walkways from a fixed camera; bicycles, skaters and carts are anomalous. Every frame is labelled, and "
    "masked in all clips of the second walkway and in 10 of 36 of the first.",
    home="https://www.svcl.ucsd.edu/projects/anomaly/dataset.htm",
    citation="Mahadevan, Li, Bhalodia, Vasconcelos: Anomaly Detection in Crowded Scenes, CVPR 2010, "
    "https://doi.org/10.1109/CVPR.2010.5539872",
    licence="for research; stated on its page",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/<category>/{Train/Train<NNN>/<frame>.tif, Test/{Test<NNN>/<frame>.tif, Test<NNN>_gt/<frame>.bmp, "
    "<category>.m}}",
    masks=True,
    pictures=(9350, 9210),
    categories=("UCSDped1", "UCSDped2"),
)

FRAMES = re.compile(r"gt_frame\s*=\s*\[([^\]]*)\]")  # a line of the .m file for each clip, such as [5:90, 140:200]


@dataclass(frozen=True)
class UCSDPed:
    """One walkway. A sample is a frame; its `category` is the walkway and the clip, as in UCSDped2/Test004.

    Labels come from the .m file beside the test clips; where it is missing, from the masks, which are then read for
    listing.
    """

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "Train")

    def train(self) -> list[Sample]:
        found = [
            make_sample(self.root, path, f"{self.category}/{clip.name}", "good")
            for clip in self._clips("Train")
            for path in pictures(clip)
        ]
        return in_order(found)

    def test(self) -> list[Sample]:
        clips = self._clips("Test")
        if self._ranges and len(self._ranges) != len(clips):
            raise WrongInput(
                f"{self.root}/{self.category}/Test has {len(clips)} clips and labels for {len(self._ranges)}; the copy "
                "is not complete."
            )
        return in_order(s for number, clip in enumerate(clips) for s in self._frames(number, clip))

    def _clips(self, split: str) -> list[Path]:
        found = [f for f in folders(Path(self.root) / self.category / split) if not f.name.endswith("_gt")]
        found = [f for f in found if pictures(f)]
        if not found or not self.category:
            wanted = f"frames in {self.category or '<category>'}/{split}/{split}001/"
            raise not_found("UCSDPed", self.root, wanted)
        return found

    @cached_property
    def _ranges(self) -> list[set[int]]:
        """The anomalous frames of each test clip, counted from 1; empty without the .m file."""
        tables = sorted((Path(self.root) / self.category / "Test").glob("*.m"))
        if not tables:
            return []
        return [_numbers(text) for text in FRAMES.findall(tables[0].read_text(encoding="utf-8", errors="replace"))]

    def _frames(self, number: int, clip: Path) -> list[Sample]:
        truth = {p.stem: p for p in pictures(clip.with_name(f"{clip.name}_gt"))}
        if not truth and not self._ranges:
            raise not_found("UCSDPed", clip.parent, f"labels: a .m file or {clip.name}_gt/")
        found = []
        for index, path in enumerate(pictures(clip), 1):
            mask = truth.get(path.stem)
            bad = index in self._ranges[number] if self._ranges else mask is not None and bool(read_mask(mask).any())
            view = mask_view([mask], path) if mask else None
            found.append(
                make_sample(self.root, path, f"{self.category}/{clip.name}", "anomaly" if bad else "good", view)
            )
        return found


def _numbers(text: str) -> set[int]:
    """`5:90, 140:200` as a set."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)\s*(?::\s*(\d+))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return found


DATASET = UCSDPed
