"""Read the members of an asset's archive (wheel, sdist, Debian package) or installed package as byte streams.

Invariant: a member's path stays inside the folder it is extracted to. Called by `fetching`.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import IO

from medvista_ray.assets.packages import Asset, Origin
from medvista_ray.errors import AssetError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


def read_members(asset: Asset, archive: Path | None) -> Iterator[tuple[str, IO[bytes]]]:
    """(relative path, stream) of each wanted member. Raises AssetError if the archive cannot be read or lacks one."""
    missing = set(asset.members)
    try:
        for path, stream in _open(asset, archive):
            hits = {pattern for pattern in asset.members if fnmatchcase(path, pattern)}
            if hits:
                missing -= hits
                yield _safe(path, asset.strip), stream
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise AssetError(f"{archive} cannot be read: {error}") from error
    if missing:
        raise AssetError(f"{archive or asset.package} has no {', '.join(sorted(missing))}")


def _open(asset: Asset, archive: Path | None) -> Iterator[tuple[str, IO[bytes]]]:
    if archive is None:
        return _installed(asset)
    if asset.origin == Origin.WHEEL:
        return _zip(archive)
    if asset.origin == Origin.SDIST:
        return _tar(tarfile.open(archive))
    return _tar(tarfile.open(fileobj=io.BytesIO(_debian_data(archive))))


def _zip(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as wheel:
        for info in wheel.infolist():
            if not info.is_dir():
                with wheel.open(info) as stream:
                    yield info.filename, stream


def _tar(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    with tar:
        for info in tar:
            stream = tar.extractfile(info) if info.isfile() else None
            if stream is not None:
                yield info.name.removeprefix("./"), stream


def _debian_data(archive: Path) -> bytes:
    """The data.tar.* of a Debian package: an `ar` archive of 60-byte headers and even-aligned bodies (man 5 deb)."""
    with archive.open("rb") as file:
        if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise AssetError(f"{archive} is not a Debian package")
        while len(header := file.read(_AR_HEADER)) == _AR_HEADER:
            size = int(header[48:58])
            if header[:16].startswith(b"data.tar"):
                return file.read(size)
            file.seek(size + size % 2, io.SEEK_CUR)
    raise AssetError(f"{archive} has no data.tar")


def _installed(asset: Asset) -> Iterator[tuple[str, IO[bytes]]]:
    try:
        package = distribution(asset.package)
    except PackageNotFoundError as error:
        raise AssetError(f"package {asset.package} {asset.version} is not installed") from error
    for path in asset.members:
        try:
            with Path(str(package.locate_file(path))).open("rb") as stream:
                yield path, stream
        except FileNotFoundError as error:
            raise AssetError(f"{asset.package} {package.version} has no {path}; expected {asset.version}") from error


def _safe(path: str, strip: int) -> str:
    parts = PurePosixPath(path).parts[strip:]
    if not parts or parts[0] == "/" or ".." in parts:
        raise AssetError(f"archive member {path!r} would leave its folder")
    return "/".join(parts)
