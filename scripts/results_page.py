"""Renew docs/results.md from the results of benchmarks/real.py: python scripts/results_page.py [--out benchmarks/out]

The tables are those of `anomalens report`, unchanged; numbers only, no picture of the data.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from anomalens.apps.bench_report import report
from anomalens.bench import results

ROOT = Path(__file__).parents[1]
CLEAN = (
    "Results on",
    "Image AUROC by category",
    "Pixel AUROC by category",
    "Pixel AUPRO@0.3 by category",
    "What it costs",
)
DISTURBED = (
    "Image AUROC under disturbances", "What disturbances cost in Image AUROC", "Image AUROC by disturbance",
    "At a threshold from clean pictures",
)  # fmt: skip
HEAD = """# Measured on real pictures

PatchCore, PaDiM and GRNR at their default settings, with the embedded backbone `tiny` and three networks trained on ImageNet,
on six small real categories: surfaces of magnetic tiles, circuit boards, hazelnuts, trays of nuts (a logical category: every
nut looks right), brain MRI slices and frames of a walkway video. Nothing was chosen on the labels of these test pictures for
this page; PatchCore's image score and aspect ratio were, earlier, with four of the categories in sight.

```text
python benchmarks/real.py --out results
python benchmarks/real.py --robustness --out results
python scripts/results_page.py --out results
```

The pictures may not be copied, so they are not part of this project; only numbers are shown here. Made with {versions} on
{machine}, shared with other work: times are worth little, ratios more.
"""
BETWEEN = """
## Under disturbances

Seven of the [17 corruptions](robustness.md), one or two of each group, at five grades; up to 10 good and 10 anomalous test
pictures per category, seed 0, a fifth of the good pictures held out to set thresholds with. Learnt from clean pictures.
"""


def sections(text: str) -> dict[str, str]:
    """Heading to what stands below it, of Markdown."""
    parts = re.split(r"^#{2,4} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(paths: list[Path], wanted: tuple[str, ...]) -> str:
    """The sections whose heading begins with one of `wanted`, in that order."""
    with tempfile.TemporaryDirectory() as folder:
        report(paths, folder)
        found = sections((Path(folder) / "tables.md").read_text(encoding="utf-8"))
    chosen = []
    for start in wanted:
        heading = next(h for h in found if h.startswith(start))
        title = re.sub(r"( on|,) pictures$", "", heading)
        chosen.append(f"\n### {title}\n\n{found[heading].strip()}\n")
    return "".join(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    options = parser.parse_args()
    clean = [options.out / name / "results.jsonl" for name in ("clean", "clean_grnr")]
    disturbed = [options.out / "disturbed" / "results.jsonl"]
    header = results.read(*clean).headers[0]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    machine = f"{header['machine']['cores']} cores of {header['machine']['cpu']}"
    page = (
        HEAD.format(versions=versions, machine=machine) + tables(clean, CLEAN) + BETWEEN + tables(disturbed, DISTURBED)
    )
    (ROOT / "docs" / "results.md").write_text(page, encoding="utf-8")
    failed = sum(row["status"] == "failed" for row in results.read(*clean, *disturbed).rows)
    print(f"docs/results.md is written; {failed} evaluations failed.")


if __name__ == "__main__":
    main()
