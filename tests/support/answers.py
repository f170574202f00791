"""Answers of models as they really come: what is to be understood of each, a verdict or a status."""

from __future__ import annotations

GOOD = (
    '{"reasoning": "a dent", "anomalous": true, "confidence": 90, '
    '"defects": [{"type": "dent", "where": "left", "box": [0, 0, 500, 250]}]}'
)

NOISE = {
    "fences": (f"```json\n{GOOD}\n```", True),
    "prose around": (f"Of course. Here is my answer: {GOOD} Let me know if you need more.", True),
    "newlines inside strings": (
        '{"reasoning": "first line\nsecond\tline", "anomalous": false, "confidence": 80}',
        False,
    ),
    "escaped quotes": ('{"reasoning": "labelled \\"OK\\" and {fine}", "anomalous": false}', False),
    "unicode": ('{"reasoning": "Riß links – 割れ", "anomalous": true, "confidence": 70}', True),
    "official field names": ('{"reasoning": "scratched", "correctness": 0}', True),
    "wrong types": ('{"reasoning": ["x"], "anomalous": "Yes.", "confidence": "93 %", "defects": "none"}', True),
    "python literals": ("{'reasoning': 'it's fine', 'anomalous': False, 'confidence': 60,}", False),
    "refusal": ("I'm sorry, but I can't help with that.", "refused"),
    "truncated": (GOOD[:-60], "unparsable"),
    "empty": ("", "refused"),
    "keywords alone": ("The part is clearly defective.", "unparsable"),
    "no verdict": ('{"reasoning": "hm"}', "unparsable"),
    "neither": ('{"anomalous": "maybe"}', "unparsable"),
    "a list": ("[true]", "unparsable"),
    "two answers": ('{"anomalous": true, "correctness": 1}', "unparsable"),
    "a key twice": ('{"anomalous": true, "anomalous": false}', "unparsable"),
    "normal with a defect": ('{"anomalous": false, "defects": [{"type": "crack"}]}', "unparsable"),
    "a number for a verdict": ('{"anomalous": 0.7}', "unparsable"),
}
