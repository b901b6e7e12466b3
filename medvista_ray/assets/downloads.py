"""Obtain one archive with the user's own package manager: `pip download` (or `apt-get download`); check its sha256.

Invariant: <root>/downloads holds only archives whose checksum was right when they were put there. Called by `fetching`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from medvista_ray.assets.packages import Asset, Origin
from medvista_ray.assets.store import PARTIAL, cache_root, fetch_hint, no_space, sha256_of
from medvista_ray.errors import AssetError

_POLL_S = 0.2
_NUM_TAIL_LINES = 4

# pip asks a source package for its metadata even when it only downloads. An old set-up script calls two names that
# Python 3.12 removed; they are put back for that one subprocess.
_OLD_NAMES = """\
import configparser
if not hasattr(configparser, "SafeConfigParser"):
    configparser.SafeConfigParser = configparser.RawConfigParser
    configparser.RawConfigParser.readfp = configparser.RawConfigParser.read_file
"""


def obtain(asset: Asset, advance: Callable[[int], None]) -> Path:
    """The checked archive in the downloads folder; downloaded if it is not there. `advance` is told the bytes so far.

    Raises AssetError: offline, no such version, wrong checksum, full disk.
    """
    kept = cache_root() / "downloads" / asset.file_name
    if kept.is_file() and sha256_of(kept) == asset.sha256:
        return kept
    kept.unlink(missing_ok=True)
    with _work_folder(kept.parent) as work:
        _require_space(asset)
        output, code = _run(_command(asset, work), _environment(asset, work), work, advance)
        _raise_on_failure(asset, output, code)
        _accept(asset, _only_file(asset, work / "out"), kept)
    return kept


def _require_space(asset: Asset) -> None:
    if shutil.disk_usage(cache_root()).free < asset.bytes_needed:
        raise AssetError(no_space(asset.name, asset.bytes_needed))


@contextmanager
def _work_folder(parent: Path) -> Generator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=parent))
    try:
        for name in ("out", "tmp", "site"):
            (work / name).mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _command(asset: Asset, work: Path) -> list[str]:
    if asset.origin == Origin.DEBIAN:
        if shutil.which("apt-get") is None:
            raise AssetError(f"{asset.name} is a Debian package, and this machine has no apt-get")
        return ["apt-get", "download", f"{asset.package}={asset.version}"]
    only = ["--no-binary", asset.package, "--no-build-isolation"]
    if asset.origin == Origin.WHEEL:
        only = ["--only-binary", ":all:", *asset.pip_options]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    return [*pip, *only, "--dest", str(work / "out"), f"{asset.package}=={asset.version}"]


def _environment(asset: Asset, work: Path) -> Mapping[str, str]:
    environment = {**os.environ, "TMPDIR": str(work / "tmp"), "LC_ALL": "C"}
    if asset.origin == Origin.SDIST:
        (work / "site" / "sitecustomize.py").write_text(_OLD_NAMES)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(work / "site"), os.environ.get("PYTHONPATH")]))
    return environment


def _run(command: list[str], environment: Mapping[str, str], work: Path, advance: Callable[[int], None]) -> tuple[str, int]:
    """Run to the end (the child too is stopped if this process is interrupted); its output and exit code."""
    log = work / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, env=environment, cwd=work / "out", stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    code = child.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    advance(_num_bytes(work))
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    return log.read_text(errors="replace"), code


def _num_bytes(folder: Path) -> int:
    """Size of the largest file being written below: pip copies a finished one, which must not count twice."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except OSError:  # moved or removed meanwhile
                continue
    return largest


def _raise_on_failure(asset: Asset, output: str, code: int) -> None:
    if code == 0:
        return
    if "No space left on device" in output or "Disk quota exceeded" in output:
        raise AssetError(no_space(asset.name, asset.bytes_needed))
    if "No module named pip" in output:
        raise AssetError(f"{sys.executable} has no pip, which fetches {asset.name!r}; run: {sys.executable} -m ensurepip")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    tail = " | ".join(lines[-_NUM_TAIL_LINES:])
    raise AssetError(
        f"asset {asset.name!r} is not in {cache_root()} and {asset.package} {asset.version} could not be downloaded; "
        f"once there is a connection, run: {fetch_hint(asset)} (the downloader said: {tail})"
    )


def _only_file(asset: Asset, folder: Path) -> Path:
    files = sorted(folder.iterdir())
    if len(files) != 1:
        raise AssetError(f"{asset.name}: expected {asset.file_name}, the downloader left {[f.name for f in files]}")
    return files[0]


def _accept(asset: Asset, found: Path, kept: Path) -> None:
    digest = sha256_of(found)
    if digest != asset.sha256:
        raise AssetError(f"{found.name}: wrong checksum, expected sha256 {asset.sha256}, got {digest}; the file was removed")
    os.replace(found, kept)
