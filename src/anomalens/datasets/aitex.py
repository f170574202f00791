"""AITEX fabrics, read from the folders that its archives unpack to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import WrongInput
from ..types import DatasetCard, Sample, View
from ._files import crop_views, mask_view, picture_size, picture_view, read_mask_like
from ._layouts import first_folder, folders, in_order, make_sample, not_found, pictures, split_off

CARD = DatasetCard(
    title="AITEX",
    summary="Strips of seven woven fabrics, 4096 x 256 pixels, 140 good and 105 with a flaw; no official division, so "
    "the first three quarters of the good strips of a fabric are to train on.",
    home="https://www.aitex.es/afid/",
    citation="Silvestre-Blanes, Albero-Albero, Miralles, Pérez-Llorens, Moreno: A Public Fabric Database for Defect "
    "Detection Methods and Results, Autex Research Journal 19, 2019, https://doi.org/10.2478/aut-2019-0035",
    licence="stated on its page",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/{NODefect_images/<fabric>/<number>_000_<fabric>.png, Defect_images/<number>_<flaw>_<fabric>.png, "
    "Mask_images/<number>_<flaw>_<fabric>_mask.png}",
    masks=True,
    pictures=(105, 140),
    categories=("00", "01", "02", "03", "04", "05", "06"),
)

FLAWS = {"002": "broken_end", "006": "broken_yarn", "010": "broken_pick", "016": "weft_curling", "019": "fuzzy_ball",
         "022": "cut_selvage", "023": "crease", "025": "warp_ball", "027": "knots", "029": "contamination",
         "030": "nep", "036": "weft_crack"}  # fmt: skip


@dataclass(frozen=True)
class AITEX:
    """One fabric, named by the last number of its files. A few strips with a flaw have no mask in the archive.

    tile: 256 cuts the strips into squares, each a sample of its own, anomalous where its part of the mask is; strips
        with a flaw but without a mask, and a rest narrower than a tile, are then left out. 0 leaves strips whole.
    train_share: part of the good strips to train on, the first by name.
    """

    root: str | Path
    category: str
    tile: int = 0
    train_share: float = 0.75

    def __post_init__(self) -> None:
        if self.tile < 0:
            raise WrongInput(f"tile is a width in pixels, or 0 for whole strips; got {self.tile}.")

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({_fabric(path) for path in (*self._good, *self._flawed)}))

    def train(self) -> list[Sample]:
        return in_order(s for path in self._divided[0] for s in self._samples(path, ()))

    def test(self) -> list[Sample]:
        good = [s for path in self._divided[1] for s in self._samples(path, ())]
        bad = [
            s for path in self._flawed if _fabric(path) == self.category for s in self._samples(path, self._of(path))
        ]
        return in_order([*good, *bad])

    @property
    def _divided(self) -> tuple[list[Path], list[Path]]:
        good = [path for path in self._good if _fabric(path) == self.category]
        if not good:
            raise WrongInput(
                f"AITEX looked for strips of fabric {self.category or '<category>'} in {self.root} and saw those of "
                f"{', '.join(self.categories)}."
            )
        return split_off(good, self.train_share)

    @cached_property
    def _good(self) -> list[Path]:
        above = first_folder("AITEX", self.root, ("NODefect_images", "no_defect"))
        found = [p for folder in (above, *folders(above)) for p in pictures(folder) if _fabric(p)]
        if not found:
            raise not_found("AITEX", above, "strips <number>_000_<fabric>.png, in it or in its folders")
        return found

    @cached_property
    def _flawed(self) -> list[Path]:
        return [p for p in pictures(first_folder("AITEX", self.root, ("Defect_images", "defect"))) if _fabric(p)]

    @cached_property
    def _masks(self) -> list[Path]:
        return pictures(first_folder("AITEX", self.root, ("Mask_images", "mask")))

    def _of(self, path: Path) -> list[Path]:
        """The masks of a strip: <stem>_mask.png, in some cases two, _mask1 and _mask2."""
        return [m for m in self._masks if m.stem == path.stem or m.stem.startswith(f"{path.stem}_")]

    def _samples(self, path: Path, masks: Sequence[Path]) -> list[Sample]:
        flaw = path.stem.split("_")[1]
        defect = "good" if flaw == "000" else FLAWS.get(flaw, flaw)
        if not self.tile:
            mask = mask_view(masks, path) if masks else None
            return [make_sample(self.root, path, self.category, defect, mask, {"image": picture_view(path)})]
        if defect != "good" and not masks:
            return []
        truth = read_mask_like(masks, path) if masks else None
        height, width = picture_size(path)
        found = []
        for i in range(width // self.tile):
            left, right = i * self.tile, (i + 1) * self.tile
            image, mask = crop_views(path, masks, (left, 0, right, height))
            flawed = truth is not None and bool(truth[:, left:right].any())
            found.append(self._tile(path, i, image, mask if flawed else None, defect))
        return found

    def _tile(self, path: Path, number: int, image: View, mask: View | None, defect: str) -> Sample:
        sample = make_sample(self.root, path, self.category, defect if mask else "good", mask, {"image": image})
        return replace(sample, id=f"{sample.id}/{number:02}")


def _fabric(path: Path) -> str:
    """The last of the three numbers of a name; "" for other names."""
    numbers = path.stem.split("_")
    return numbers[2] if len(numbers) == 3 and all(n.isdigit() for n in numbers) else ""


DATASET = AITEX
