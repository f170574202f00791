"""MVTec AD, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import WrongInput
from ..types import DatasetCard, Sample
from ._files import ignored, mask_view, picture_view, require_path

CARD = DatasetCard(
    title="MVTec AD",
    summary="The usual benchmark: five textures and ten things, photographed in a laboratory, with exact masks.",
    home="https://www.mvtec.com/company/research/datasets/mvtec-ad",
    citation="Bergmann, Batzner, Fauser, Sattlegger, Steger: The MVTec Anomaly Detection Dataset, IJCV 129, 2021, "
    "https://doi.org/10.1007/s11263-020-01400-4",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural",),
    layout="<root>/<category>/{train/good, test/<defect>, ground_truth/<defect>}",
    masks=True,
    pictures=(3629, 1725),
    categories=("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw",
                "tile", "toothbrush", "transistor", "wood", "zipper"),
)  # fmt: skip


@dataclass(frozen=True)
class MVTecAD:
    """One category of <root>/<category>/{train/good, test/<defect>, ground_truth/<defect>/<stem>_mask.png}.

    Other datasets in this layout can be read too; nothing depends on the names of the categories.
    """

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        """Every category below the root."""
        return tuple(sorted(path.parent.parent.name for path in Path(self.root).glob("*/train/good")))

    def train(self) -> list[Sample]:
        return [self._sample(path) for path in self._files("train/good/*.png")]

    def test(self) -> list[Sample]:
        return [self._sample(path) for path in self._files("test/*/*.png")]

    def _files(self, pattern: str) -> list[Path]:
        root = Path(self.root)
        require_path(root)
        files = (root / self.category).glob(pattern) if self.category else ()
        found = sorted(path for path in files if not ignored(path.name))
        if not found:
            if (root / "train" / "good").is_dir():
                raise WrongInput(f"{root} is one category itself; give MVTecAD the folder above it as root.")
            near = ", ".join(self.categories) or "none"
            raise WrongInput(
                f"MVTecAD found no {self.category or '<category>'}/{pattern} in {root}; categories there: {near}."
            )
        return found

    def _sample(self, path: Path) -> Sample:
        defect = path.parent.name
        mask = Path(self.root) / self.category / "ground_truth" / defect / f"{path.stem}_mask.png"
        return Sample(
            id=path.relative_to(self.root).as_posix(),
            views={"image": picture_view(path)},
            category=self.category,
            label=int(defect != "good"),
            mask=mask_view([mask], path) if defect != "good" else None,
            defect=defect,
        )


DATASET = MVTecAD
