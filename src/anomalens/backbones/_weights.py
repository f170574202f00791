"""What backbones with weights of others share: options in their names, files found here or fetched on the user's word."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import CannotWrite, MissingWeights
from ..files import write_atomic
from ._onnx import LOG, cache_folder, first_line


def from_hub(name: str, repository: str, filename: str, size: float, *, download: bool) -> Path:
    """A file of a Hugging Face repository: from the hub's cache, or put into our cache folder by hand.

    name: of the backbone, FAMILY:NETWORK[?OPTIONS], for the message. size: bytes of the file. download: fetch it where
        it is not there.

    Raises:
        MissingWeights: it is not on this machine; the message says which file to put where.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    by_hand = cache_folder() / "weights" / f"{repository.replace('/', '--')}.safetensors"
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    if by_hand.is_file():
        return by_hand
    reason = "are not on this machine"
    advice = f"allow the download with {name}{'&' if '?' in name else '?'}download=yes, or fetch it"
    if download:
        LOG.warning("downloading %s of %s, about %.0f MB, once", filename, repository, size / 1e6)
        try:
            return Path(hf_hub_download(repository, filename))
        except Exception as error:  # connection, proxy, rights, disk: each library below has its own exceptions
            reason, advice = f"could not be downloaded ({first_line(error)})", "fetch it"
    raise MissingWeights(
        f"the weights of {name} {reason}: they are the file {filename} (about {size / 1e6:.0f} MB) of "
        f"{repository} on the Hugging Face hub; {advice} on another machine and save it as {by_hand}, "
        f"or name it with {name}@FILE."
    )


def sha256_of(path: Path) -> str:
    """Of a file's content; remembered in the cache folder, as reading 300 MB takes longer than the rest of a start."""
    known_as = stamp(path.resolve())
    memory = cache_folder() / "sha256" / f"{hashlib.sha256(known_as[0].encode()).hexdigest()[:16]}.json"
    try:
        *known, digest = json.loads(memory.read_text())
        if known == known_as:
            return digest
    except (OSError, ValueError, TypeError):
        pass  # not there yet, or damaged
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    with suppress(CannotWrite):
        write_atomic(memory, json.dumps([*known_as, hasher.hexdigest()]))
    return hasher.hexdigest()


def stamp(path: Path) -> list[Any]:
    """What changes when a file is replaced."""
    return [str(path), path.stat().st_size, path.stat().st_mtime_ns]


def value_of(text: str) -> Any:
    """The value of an option: yes, no, a number, a list with commas, or the word itself."""
    if "," in text:
        return tuple(value_of(part) for part in text.split(","))
    if text.lower() in ("yes", "true", "no", "false"):
        return text.lower() in ("yes", "true")
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def gpu_is_there() -> bool:
    """Whether torch sees a GPU; torch, slow to import, is asked only where a driver is present."""
    driver = any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg", r"C:\Windows\System32\nvcuda.dll"))
    if not driver or find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
