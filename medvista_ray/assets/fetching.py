"""Bring assets into the cache: download, check, extract, rename.

Invariant: one process at a time writes (a file lock), and an asset appears complete or not at all, whatever interrupts.
What is already there is never touched, so that a filled cache works offline and read-only. Called by the `assets fetch`
command, and by whoever wants the pictures.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medvista_ray.assets import store
from medvista_ray.assets.archives import read_members
from medvista_ray.assets.downloads import obtain
from medvista_ray.assets.packages import Asset, Origin, select
from medvista_ray.errors import AssetError

_LOCK_POLL_S = 0.2


@dataclass(frozen=True)
class Progress:
    """What happens to one asset. `str()` of it is a line for a log."""

    asset: Asset
    stage: str
    """"waiting", "download", "extract", "done", "present" or "skipped"."""
    num_bytes: int = 0
    """Bytes so far in this stage."""
    detail: str = ""

    def __str__(self) -> str:
        amount = f" {self.num_bytes / 1e6:.1f} MB" if self.num_bytes else ""
        return f"{self.asset.name}: {self.stage}{amount}{' (' + self.detail + ')' if self.detail else ''}"


Report = Callable[[Progress], None]


def fetch(names: Iterable[str] | None = None, progress: Report | None = None) -> list[Asset]:
    """Bring the named assets (None: all) into the cache; those that are there now.

    An optional asset that cannot be had is reported as "skipped" and left out. Raises AssetError (offline, wrong
    checksum, full disk) and UnknownNameError; the assets fetched before the error stay.
    """
    return fetch_assets(select(names), progress)


def fetch_assets(assets: Sequence[Asset], progress: Report | None = None) -> list[Asset]:
    """As `fetch`, for assets that need not be in the catalog."""
    report = progress or _silent
    absent = [asset for asset in assets if not store.is_whole(asset)]
    for asset in assets:
        if asset not in absent:
            report(Progress(asset, "present"))
    if not absent:
        return list(assets)
    with _lock(absent[0], report):
        store.sweep()
        skipped = [asset for asset in absent if not _bring(asset, report)]
    return [asset for asset in assets if asset not in skipped]


def _silent(_: Progress) -> None:
    """No report wanted."""


def _bring(asset: Asset, report: Report) -> bool:
    """Fetch one asset; False if it is optional and cannot be had."""
    if store.is_whole(asset):  # another process fetched it while this one waited
        report(Progress(asset, "present"))
        return True
    try:
        with store.disk_errors(asset.name, asset.bytes_needed):
            archive = None if asset.origin == Origin.INSTALLED else obtain(asset, _counter(asset, "download", report))
            _extract(asset, archive, report)
    except AssetError as error:
        if not asset.optional:
            raise
        report(Progress(asset, "skipped", detail=str(error)))
        return False
    report(Progress(asset, "done"))
    return True


def _counter(asset: Asset, stage: str, report: Report) -> Callable[[int], None]:
    return lambda num_bytes: report(Progress(asset, stage, num_bytes))


def _extract(asset: Asset, archive: Path | None, report: Report) -> None:
    total = 0

    def advance(num_bytes: int) -> None:
        nonlocal total
        total += num_bytes
        report(Progress(asset, "extract", total))

    with store.staged_folder(store.folder_of(asset)) as stage:
        files = {path: store.copy_hashed(stream, stage / path, advance) for path, stream in read_members(asset, archive)}
        for path, expected in asset.member_sha256.items():
            if files[path]["sha256"] != expected:
                raise AssetError(f"{path}: wrong checksum, expected sha256 {expected}, got {files[path]['sha256']}")
        manifest = {"identity": store.identity(asset), "licence": asset.licence, "credit": asset.credit, "files": files}
        (stage / store.MANIFEST).write_text(json.dumps(manifest, indent=1))


@contextmanager
def _lock(asset: Asset, report: Report) -> Generator[None]:
    """Exclusive over processes; the kernel releases it if this process dies."""
    path = store.cache_root() / ".lock"
    with store.disk_errors("the lock file", 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report(Progress(asset, "waiting", detail=f"another process fetches into {path.parent}"))
                waiting = True
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(handle)
