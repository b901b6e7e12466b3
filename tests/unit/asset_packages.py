"""Tiny real packages for the asset tests: a wheel and an sdist in a folder that pip searches, and a Debian package."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

from medvista_ray.assets.packages import Asset, Origin

WHEEL_NAME = "tinydata-1.0-py3-none-any.whl"
SDIST_NAME = "olddata-1.0.tar.gz"

# What old set-up scripts do: a name that Python 3.12 removed from configparser, and an import of a dependency.
_OLD_SETUP = """\
import configparser
import numpy
from setuptools import setup
configparser.SafeConfigParser().readfp(open("setup.cfg"))
setup(name="olddata", version="1.0")
"""


def build_wheel(folder: Path, content: bytes = b"pixels", extra: str = "tinydata/data/b.txt") -> Path:
    """tinydata 1.0 with tinydata/data/a.bin, one more member and a licence."""
    path = folder / WHEEL_NAME
    info = "tinydata-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tinydata/data/a.bin", content)
        wheel.writestr(extra, b"text")
        wheel.writestr("tinydata/code.py", b"raise RuntimeError")
        wheel.writestr(f"{info}/licenses/LICENSE", b"MIT")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def build_sdist(folder: Path) -> Path:
    """olddata 1.0 whose set-up script needs names of the past."""
    path = folder / SDIST_NAME
    files = {"setup.py": _OLD_SETUP, "setup.cfg": "[metadata]\n", "data/c.txt": "values", "PKG-INFO": _PKG_INFO}
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"olddata-1.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def build_debian(folder: Path) -> Path:
    """x 1.0 with ./usr/share/x/labels.txt; its control part has an odd size, as the padding of `ar` must be seen."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as data:
        member = tarfile.TarInfo("./usr/share/x/labels.txt")
        member.size = 7
        data.addfile(member, io.BytesIO(b"1 left\n"))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(tar.getvalue())}
    path = folder / "x_1.0_all.deb"
    path.write_bytes(b"!<arch>\n" + b"".join(_ar_entry(name, body) for name, body in parts.items()))
    return path


def _ar_entry(name: str, body: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n"
    return header.encode() + body + b"\n" * (len(body) % 2)


def debian_asset(package: Path) -> Asset:
    """The Debian package as an asset."""
    return _asset("x", package, Origin.DEBIAN, ("usr/share/x/*",), 0, None, True, 0.1)


_PKG_INFO = "Metadata-Version: 2.1\nName: olddata\nVersion: 1.0\n"


def wheel_asset(wheel: Path, *, sha256: str | None = None, optional: bool = False, unpacked: float = 0.1) -> Asset:
    """The wheel as an asset (right checksum unless another is given)."""
    return _asset("tinydata", wheel, Origin.WHEEL, ("tinydata/data/*", "*LICENSE"), 0, sha256, optional, unpacked)


def sdist_asset(sdist: Path) -> Asset:
    """The source package as an asset."""
    return _asset("olddata", sdist, Origin.SDIST, ("*/data/*",), 1, None, False, 0.1)


def _asset(
    name: str, path: Path, origin: Origin, members: tuple[str, ...], strip: int, sha256: str | None, optional: bool,
    unpacked: float,
) -> Asset:  # fmt: skip
    return Asset(
        name=name,
        package=name,
        version="1.0",
        file_name=path.name,
        sha256=sha256 or hashlib.sha256(path.read_bytes()).hexdigest(),
        origin=origin,
        megabytes=path.stat().st_size / 1e6,
        unpacked_megabytes=unpacked,
        licence="MIT",
        credit="nobody",
        gives="nothing",
        members=members,
        strip=strip,
        optional=optional,
    )
