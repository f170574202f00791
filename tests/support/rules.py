"""Rules and a parser for LogiCode that know what is wrong in the drawn pictures of the tests: nothing pale, nothing dark."""

from __future__ import annotations

from typing import Any

PALE, DARK = ((0, 360), (0, 0.43), (0, 1)), ((0, 360), (0, 1), (0, 0.27))  # leather is brown and lit evenly
BRIGHT = ((0, 360), (0, 1), (0.62, 1))


def rules_against(**ranges: Any) -> dict[str, Any]:
    """Settings of LogiCode: nothing of these colours may be there."""
    lines = [f"labels: [{', '.join(ranges)}]", "rules:", *(f"  - absent: {name}" for name in ranges)]
    return {
        "rules": "\n".join(lines),
        "parser": "color-blobs",
        "parser_settings": {"ranges": ranges, "smallest": 2},
    }
