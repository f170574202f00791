"""Start-up and install size: seconds of `anomalens --help`, `import anomalens` and a first prediction; what they load."""

from __future__ import annotations

import subprocess
import sys
import time

from _common import table

COMMAND = "import sys; sys.argv = ['anomalens', '{}']; from anomalens.apps.cli import main; main(standalone_mode=False)"
CASES = {
    "python -c pass": "pass",
    "import anomalens": "import anomalens",
    "anomalens --help": COMMAND.format("--help"),
    "anomalens list": COMMAND.format("list"),
    "backbones.get('tiny')": "from anomalens import backbones; backbones.get('tiny')",
}


def main() -> None:
    rows: list[tuple[object, ...]] = []
    for name, code in CASES.items():
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            run = subprocess.run(
                [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
            )
            seconds.append(time.perf_counter() - start)
        loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines() if "|" in line}
        heavy = sorted(loaded & {"numpy", "onnxruntime", "torch", "timm", "scipy", "PIL"})
        rows.append((name, sorted(seconds)[3], ", ".join(heavy) or "-"))
    table(("start", "median seconds", "heavy libraries loaded"), rows)


if __name__ == "__main__":
    main()
