"""Checksums of a finished checkpoint: written last, checked before anything is read. Floor 5.

The manifest is a file in the checkpoint's directory with the size and sha256 of every other
file in it, and the name, shape and dtype of every array. It is written once all others are
on disk, so that a directory without one is a save that was never finished.
"""

import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

NAME = "manifest.json"


class ArrayInfo(NamedTuple):
    """What an array must be to be restored; dtype as JAX prints it."""

    shape: tuple[int, ...]
    dtype: str


class CheckpointDamagedError(RuntimeError):
    """A finished checkpoint doesn't hold the bytes that were saved."""


def write(directory: pathlib.Path, arrays: dict[str, ArrayInfo]) -> None:
    """Adds the manifest to a directory that is complete, at once or not at all.

    Args:
      directory: of the checkpoint; nothing writes to it any more.
      arrays: what it holds.
    """
    files = {name: _fingerprint(directory / name) for name in _files(directory)}
    content = {
        "files": files,
        "arrays": {name: [list(info.shape), info.dtype] for name, info in arrays.items()},
    }
    body = {"sha256": _content_hash(content), "content": content}
    unfinished = directory / (NAME + ".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(body, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(directory / NAME)


def is_finished(directory: pathlib.Path) -> bool:
    """Whether the directory has a manifest, be it damaged or not."""
    return (directory / NAME).exists()


def verify(directory: pathlib.Path) -> dict[str, ArrayInfo]:
    """Compares every file of a checkpoint with its manifest.

    Returns:
      The arrays that the checkpoint holds.

    Raises:
      CheckpointDamagedError: names the first file that is missing, extra, of another size or of
        other bytes.
    """
    content = _read(directory / NAME)
    files = content["files"]
    found = _files(directory)
    for name in sorted(files.keys() - set(found)):
        raise CheckpointDamagedError(f"{directory / name}: the file is missing")
    for name in sorted(set(found) - files.keys()):
        raise CheckpointDamagedError(
            f"{directory / name}: the checkpoint was saved without this file"
        )
    for name in found:
        expected, actual = files[name], _fingerprint(directory / name)
        for key in ("size", "sha256"):
            if actual[key] != expected[key]:
                raise CheckpointDamagedError(
                    f"{directory / name}: {key} is {actual[key]}, saved was {expected[key]}"
                )
    return {
        name: ArrayInfo(tuple(shape), dtype) for name, (shape, dtype) in content["arrays"].items()
    }


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The content of a manifest that is whole."""
    if not path.exists():
        raise CheckpointDamagedError(f"{path}: the file is missing")
    try:
        body = json.loads(path.read_bytes())
        content, recorded = body["content"], body["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointDamagedError(f"{path}: not a manifest: {error!r}") from error
    if _content_hash(content) != recorded:
        raise CheckpointDamagedError(f"{path}: sha256 of the content is not the one written in it")
    return content


def _files(directory: pathlib.Path) -> list[str]:
    """Every file below the directory but the manifest, relative and sorted."""
    paths = (path for path in directory.rglob("*") if not path.is_dir())
    return sorted({path.relative_to(directory).as_posix() for path in paths} - {NAME})


def _fingerprint(path: pathlib.Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()
