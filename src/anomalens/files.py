"""Writing files and folders: all or nothing, and one sentence when the disk refuses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import AnomalensError, CannotWrite


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a new folder beside the target and swap it in: readers see the old content or the new, never half.

    Two renames are needed where the target exists; a crash between them leaves the old content in `.NAME.old-*`.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
        try:
            write(fresh)
            fresh.chmod(0o755)
            if folder.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
                os.replace(folder, old / "content")
                os.replace(fresh, folder)
                shutil.rmtree(old)
            else:
                os.replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file completely or not at all."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write into one sentence."""
    try:
        yield
    except OSError as error:
        if isinstance(error, AnomalensError):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CannotWrite(f"{path} cannot be written: {reason.lower()}; nothing that was there is lost.") from error
