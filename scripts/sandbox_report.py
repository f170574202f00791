"""Which system calls do harmless programs need that the sandbox's filter does not allow? python scripts/sandbox_report.py

Runs the benign programs of the tests with a filter that reports instead of killing. To be run on every version of Python
that is supported, on every processor there is; it needs no installed package (PYTHONPATH=src). Ends with 1 where a
program needed more, or gave something else than "ok".
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from anomalens.errors import SandboxUnavailable  # noqa: E402
from anomalens.reasoning.sandbox import refused_calls  # noqa: E402
from tests.unit.reasoning.benign import PROGRAMS, scene  # noqa: E402


def main() -> int:
    print(
        f"Python {platform.python_version()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}, {os.uname().machine}"
    )
    needed: dict[str, list[str]] = {}
    failed = []
    try:
        for name, source in PROGRAMS.items():
            outcome, calls = refused_calls(source, scene())
            for call in calls:
                needed.setdefault(call, []).append(name)
            if outcome.status != "ok":
                failed.append(f"{name}: {outcome.status} {outcome.error}")
    except SandboxUnavailable as unavailable:
        print(f"not possible here: {unavailable}")
        return 2
    for call, names in sorted(needed.items()):
        print(f"{call}: needed by {', '.join(names)}")
    print(
        "\n".join(failed) or f"all {len(PROGRAMS)} programs ran; refused calls: {', '.join(sorted(needed)) or 'none'}"
    )
    return 1 if needed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
