"""Saving and loading detectors: one JSON file, one safetensors file. Reading a hostile folder can fail, never run code.

detector.json        format, method (a name in the registry), settings, learned values, calibration, versions
arrays.safetensors   every array the JSON refers to as {"array": "key"}
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from . import __version__
from .detector import Detector, create
from .errors import AnomalensError, CannotWrite, NotFitted, WrongInput
from .files import replace_folder, writing
from .thresholds import Calibration

FORMAT = 1
LARGEST_JSON = 64 * 2**20  # bytes; a detector's JSON is a few kB


def save(detector: Detector, folder: str | os.PathLike[str]) -> Path:
    """Write a fitted detector to a folder, all or nothing.

    Raises:
        NotFitted: there is nothing to save yet.
        CannotWrite: the folder holds something that is not a saved detector, or cannot be written.
    """
    if not detector.fitted:
        raise NotFitted(f"{type(detector).__name__} can be saved only after fit: call fit(samples) first.")
    folder = Path(folder)
    require_target(folder)
    arrays: dict[str, np.ndarray] = {}
    content = {"format": FORMAT, "anomalens": __version__, "numpy": np.__version__, **pack(detector, "", arrays)}

    def write(target: Path) -> None:
        try:
            save_file(arrays, target / "arrays.safetensors")
        except safetensors.SafetensorError as error:  # how safetensors passes on what the system said
            raise CannotWrite(f"{folder} cannot be written: {error}; nothing that was there is lost.") from error
        (target / "detector.json").write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")

    replace_folder(folder, write)
    return folder


def require_target(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder in which no detector can be saved: worth asking before there is a fit to lose.

    Raises:
        CannotWrite: it holds something that is not a saved detector, or the folder above takes nothing.
    """
    target = Path(folder)
    with writing(target):
        if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "detector.json").exists()):
            raise CannotWrite(f"{target} exists and is not a saved detector; choose another folder or empty this one.")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def load(folder: str | os.PathLike[str], **settings: Any) -> Detector:
    """Read a saved detector. `settings` override saved ones (device, threads, ...).

    Raises:
        WrongInput: not a saved detector, damaged, or of another format.
        UnknownName: it names a method or setting this version does not have.
    """
    folder = Path(folder)
    path = folder / "detector.json"
    missing = [name for name in ("detector.json", "arrays.safetensors") if not (folder / name).is_file()]
    if missing:
        raise WrongInput(
            f"{folder} is not a saved detector ({missing[0]} is missing); give the folder that save or --save-model wrote."
        )
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise WrongInput(f"{path} is larger than any detector we write; it was not read.")
        content = json.loads(path.read_text(encoding="utf-8"))
        arrays = load_file(folder / "arrays.safetensors")
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        if isinstance(error, AnomalensError):
            raise
        raise WrongInput(f"{folder} is damaged and was not loaded ({type(error).__name__}); save it again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise WrongInput(
            f"{folder} has format {found!r}, this version reads {FORMAT}; "
            "load it with the version that wrote it, or fit and save again."
        )
    try:
        return _unpack(content, arrays, settings)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        if isinstance(error, AnomalensError):
            raise
        raise WrongInput(f"{folder} does not describe a detector ({error!r}); save it again.") from None


def pack(detector: Detector, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "method": detector.method,
        "settings": {k: _encode(v, f"{prefix}settings.{k}", arrays) for k, v in detector.settings().items()},
        "learned": {k: _encode(getattr(detector, k, None), f"{prefix}{k}", arrays) for k in detector.learned},
    }
    if detector.calibration is not None:
        fields = detector.calibration.to_dict()
        out["calibration"] = {k: _encode(v, f"{prefix}calibration.{k}", arrays) for k, v in fields.items()}
    return out


def _encode(value: Any, key: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, Detector):
        return {"detector": pack(value, key + ".", arrays)}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return {"list": [_encode(v, f"{key}.{i}", arrays) for i, v in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": {str(k): _encode(v, f"{key}.{k}", arrays) for k, v in value.items()}}
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        arrays[key] = np.asarray(value, order="C")  # ascontiguousarray would make (1,) of a single number
        return {"array": key}
    raise TypeError(f"{key} is a {type(value).__name__}, which cannot be saved")


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "array":
        return arrays[inner]
    if kind == "detector":
        return _unpack(inner, arrays, {})
    if kind == "number":
        return float(inner)
    if kind == "list":
        return tuple(_decode(v, arrays) for v in inner)
    if kind == "dict":
        return {k: _decode(v, arrays) for k, v in inner.items()}
    raise ValueError(f"unknown kind of value {kind!r}")


def _unpack(content: dict[str, Any], arrays: dict[str, np.ndarray], overrides: dict[str, Any]) -> Detector:
    settings = {k: _decode(v, arrays) for k, v in content["settings"].items()}
    detector = create(content["method"], **{**settings, **overrides})
    learned = content["learned"]
    if set(learned) != set(detector.learned):
        raise WrongInput(
            f"the saved {detector.method} holds {sorted(learned)}, this version expects {sorted(detector.learned)}; "
            "fit and save again."
        )
    for name, value in learned.items():
        setattr(detector, name, _decode(value, arrays))
    if "calibration" in content:
        fields = {k: _decode(v, arrays) for k, v in content["calibration"].items()}
        detector.calibration = Calibration.from_dict(fields)
    return detector
