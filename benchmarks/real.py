"""Methods x backbones x categories on the real data pack, clean or disturbed: python benchmarks/real.py [--robustness]

PatchCore, PaDiM and GRNR at their defaults with the embedded backbone and three ImageNet ones, on every category of the
data pack that has labels. Clean: all test pictures, 3 seeds (GRNR: one, as it draws nothing). Disturbed: seven
corruptions of all five groups at five grades (--all: the suite of 17) on up to 10 good and 10 anomalous test pictures
per category, seed 0, maps compared at 256 pixels, a fifth of the good pictures held out for the operating point. Nothing
is chosen on these labels. Stopped, it goes on where it was. `anomalens report OUT/*/results.jsonl` shows the results.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from _common import SHARED, data

from anomalens.apps.bench import watching
from anomalens.bench import plan, run

LABELLED = ("magnetic_tile", "pcb", "hazelnut", "nut_tray", "brain_mri")
BACKBONES = (
    "tiny",
    "timm:resnet18@weights/resnet18_stem_to_layer3.safetensors",
    "timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5@weights/mobilenetv2_100_tf2_ptq.safetensors",
    "timm:mobilenetv1_100?pad_type=same&mean=0.5&std=0.5@weights/mobilenetv1_100_tf1_qat.safetensors",
)
METHODS = ["patchcore", "padim", "grnr"]
SEVEN = ("view", "grad", "spot", "defocus", "motion", "gauss", "jpeg")


def laid_out(out: Path) -> None:
    """Links in one folder, so that results name no place of this computer; the video as a folder of frames."""
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    links = {out / "weights": SHARED / "weights", **{pictures / name: data(name) for name in LABELLED}}
    video = data("pedestrian_video")
    frames = sorted((video / "train").glob("*/*.jpg"))
    links |= {pictures / "pedestrian_video/train/good" / f"{f.parent.name}_{f.name}": f for f in frames}
    with (video / "frame_labels.csv").open(encoding="utf-8") as table:
        for row in csv.DictReader(table):
            frame = video / row["file"]
            kind = "anomaly" if row["anomalous"] == "1" else "good"
            links[pictures / "pedestrian_video/test" / kind / f"{frame.parent.name}_{frame.name}"] = frame
    for link, target in links.items():
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target.resolve())


def plans(out: Path, robustness: bool, every: bool) -> list[tuple[Path, plan.Plan]]:
    """Folders of results and what goes into them."""
    title = "PatchCore, PaDiM and GRNR on the real data pack"
    common = {
        "title": title,
        "backbones": list(BACKBONES),
        "data": [{"root": "pictures", "categories": [*LABELLED, "pedestrian_video"]}],
    }
    if robustness:
        wanted = {"methods": METHODS, "corruptions": "full" if every else list(SEVEN), "limit": 10}
        found = {"disturbed": {**wanted, "title": f"{title}, disturbed", "metrics": {"size": 256}}}
    else:
        found = {
            "clean": {"methods": METHODS[:2], "seeds": [0, 1, 2]},
            "clean_grnr": {"methods": METHODS[2:], "seeds": [0]},
        }
    return [(out / name, plan.make({**common, **wanted}, out / name)) for name, wanted in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--robustness", action="store_true")
    parser.add_argument("--all", action="store_true", help="all 17 corruptions")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("out"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    for name in ("disturbed",) if options.robustness else ("clean", "clean_grnr"):
        laid_out(options.out / name)
    for out, wanted in plans(options.out, options.robustness, options.all):
        with watching(False) as progress:
            summary = run.run(wanted, out, f"processes:{options.processes}", progress)
        print({key: value for key, value in summary.items() if key != "results"})


if __name__ == "__main__":
    main()
