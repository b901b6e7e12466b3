"""The cache on disk: where it is, what is in it, whether it is intact, and arrays derived from it.

    <root>/downloads/<archive>                kept, so that nothing is downloaded twice
    <root>/assets/<name>-<version>/           members, and manifest.json (each file's size and sha256)
    <root>/assets/<name>-<version>/derived/   converted copies, made on first use

Invariant: an asset's folder appears by one rename, complete and with its manifest, or not at all. Called by everything
that reads an asset; `fetching` is the only writer of assets.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from medvista_ray.assets.packages import Asset, find, select
from medvista_ray.errors import AssetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
_BLOCK = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def cache_root() -> Path:
    """$MEDVISTA_CACHE, or medvista_ray in the user's cache folder."""
    chosen = os.environ.get("MEDVISTA_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "medvista_ray"


def folder_of(asset: Asset) -> Path:
    """Where the asset's files belong, present or not."""
    return cache_root() / "assets" / asset.folder_name


def asset_dir(name: str) -> Path:
    """Folder of the extracted asset. Raises AssetError, with the command that fetches it, if it is absent."""
    asset = find(name)
    if not is_present(asset):
        raise AssetError(f"asset {name!r} is not in {cache_root()}; run: {fetch_hint(asset)}")
    return folder_of(asset)


def fetch_hint(asset: Asset) -> str:
    """The command that fetches it."""
    return f"medvista-ray assets fetch {asset.name}"


def is_present(asset: Asset) -> bool:
    """Whether this very asset (version, checksum, members) was extracted to the end."""
    manifest = read_manifest(asset)
    return manifest is not None and manifest.get("identity") == identity(asset)


def is_whole(asset: Asset) -> bool:
    """`is_present`, and every file has its size. Cheap; `check` hashes."""
    if not is_present(asset):
        return False
    return all(_size(folder_of(asset) / path) == entry["size"] for path, entry in _files(asset).items())


def identity(asset: Asset) -> list[Any]:
    """What the manifest must say for the folder to be this asset."""
    return [asset.name, asset.version, asset.sha256, list(asset.members), dict(asset.member_sha256)]


def read_manifest(asset: Asset) -> dict[str, Any] | None:
    """The manifest, or None if there is no readable one."""
    try:
        return json.loads((folder_of(asset) / MANIFEST).read_text())
    except (OSError, ValueError):
        return None


def check(asset: Asset) -> list[str]:
    """Hash every file against the manifest: one line per file that is missing or changed."""
    problems: list[str] = []
    for path, entry in _files(asset).items():
        file = folder_of(asset) / path
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif (found := sha256_of(file)) != entry["sha256"]:
            problems.append(f"{file}: expected sha256 {entry['sha256']}, got {found}")
    return problems


def verify(names: Iterable[str] | None = None) -> list[Asset]:
    """Hash the files of the named assets (None: of those that are present) and return the assets.

    Raises AssetError that lists every damaged or missing file, or says that a named asset is absent.
    """
    assets = [a for a in select(names) if names is not None or is_present(a)]
    problems: list[str] = []
    for asset in assets:
        asset_dir(asset.name)
        problems += check(asset)
    if problems:
        raise AssetError("damaged files (fetch again to mend them): " + "; ".join(problems))
    return assets


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(source: IO[bytes], target: Path, advance: Callable[[int], None]) -> dict[str, Any]:
    """Write a stream to a file; its manifest entry. `advance` is told each block's bytes."""
    digest, size = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while block := source.read(_BLOCK):
            file.write(block)
            digest.update(block)
            size += len(block)
            advance(len(block))
    return {"sha256": digest.hexdigest(), "size": size}


@contextmanager
def staged_folder(target: Path) -> Generator[Path]:
    """A temporary folder beside `target` that takes its place if the block ends well, and vanishes if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=target.parent))
    try:
        yield stage
        stage.chmod(0o755)
        old = stage.with_name(stage.name + "-old")
        if target.exists():
            target.rename(old)
        stage.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def sweep() -> None:
    """Remove what a killed fetch left. Only under the fetch lock."""
    for parent in (cache_root() / "assets", cache_root() / "downloads"):
        for leftover in parent.glob(PARTIAL + "*"):
            shutil.rmtree(leftover, ignore_errors=True)
            leftover.unlink(missing_ok=True)


@contextmanager
def disk_errors(what: str, num_bytes: int) -> Generator[None]:
    """Turn a full or read-only disk into an AssetError that names the folder and the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise AssetError(no_space(what, num_bytes)) from error
        if error.errno in _READ_ONLY:
            raise AssetError(f"{cache_root()} cannot be written ({error}); set MEDVISTA_CACHE to another folder") from error
        raise


def is_read_only(error: AssetError) -> bool:
    """Whether `disk_errors` raised it because the cache may not be written."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _READ_ONLY


def no_space(what: str, num_bytes: int) -> str:
    """Message of a full disk."""
    root = cache_root()
    free = shutil.disk_usage(nearest_folder(root)).free
    return (
        f"no space left in {root} for {what}: needs {num_bytes:,} bytes, free {free:,}; "
        "make room or set MEDVISTA_CACHE to another folder"
    )


def nearest_folder(path: Path) -> Path:
    """The path, or its nearest ancestor that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def derived_array(name: str, key: str, build: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """A converted array of an asset, memory-mapped and read-only; built once by whoever comes first.

    In a read-only cache the array is built in memory instead. Raises AssetError if the disk is full.
    """
    import numpy as np

    path = asset_dir(name) / "derived" / f"{key}.npy"
    with suppress(OSError, ValueError, EOFError):  # absent, or cut short by a crash of the machine: build it (again)
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    array = np.ascontiguousarray(build())
    try:
        with disk_errors(f"{name}/{key}", array.nbytes):
            write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))
    except AssetError as error:
        if not is_read_only(error):
            raise
        array.setflags(write=False)
        return array
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Create or replace a file in one step; processes that race each write the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _files(asset: Asset) -> dict[str, dict[str, Any]]:
    return (read_manifest(asset) or {}).get("files", {})


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
