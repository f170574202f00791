"""anomalens finds what does not belong in pictures of things, with whatever you have.

    import anomalens as al
    detector = al.create("patchcore").fit(al.samples("good"))
    for prediction in detector.predict(al.samples("new")):
        print(prediction.id, prediction.score)

Public names load on first use, so that importing the package costs milliseconds and loads no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Card": "types",
    "Prediction": "types",
    "Reason": "types",
    "Region": "types",
    "Sample": "types",
    "View": "types",
    "AnomalensError": "errors",
    "Detector": "detector",
    "names": "detector",
    "card": "detector",
    "create": "detector",
    "save": "store",
    "load": "store",
    "samples": "datasets",
    "Calibration": "thresholds",
    "fit_calibrated": "calibrate",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from .calibrate import fit_calibrated
    from .datasets import samples
    from .detector import Detector, card, create, names
    from .errors import AnomalensError
    from .store import load, save
    from .thresholds import Calibration
    from .types import Card, Prediction, Reason, Region, Sample, View


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'anomalens' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
