"""Every benchmark, one after the other, each in its own process: make bench"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    for path in sorted(HERE.glob("*.py")):
        if path.name == "all.py" or path.name.startswith("_"):
            continue
        print(f"## {path.stem}\n", flush=True)
        if subprocess.run([sys.executable, str(path)]).returncode:
            print(f"{path.name} failed\n", flush=True)


if __name__ == "__main__":
    main()
