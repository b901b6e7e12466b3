"""What `medvista-ray assets fetch | list | verify` show. Each returns the process's exit code.

Called by `cli`. Errors propagate as AssetError for the command line to print.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from medvista_ray.assets import store
from medvista_ray.assets.fetching import Progress, fetch
from medvista_ray.assets.packages import Asset, catalog, select
from medvista_ray.errors import AssetError

_SHOWN = {"done": "ready", "present": "already there", "skipped": "skipped (optional)"}


def fetch_command(names: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Fetch what is missing, with a progress bar per asset; then licence and credit of each."""
    console = console or Console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        ready = fetch(names or None, _Reporter(bars, console))
    console.print(f"{len(ready)} assets in {store.cache_root()}")
    console.print(_credits(ready))
    return 0


def list_command(console: Console | None = None) -> int:
    """Name, state, size, origin, licence and content of each asset."""
    console = console or Console()
    table = Table("asset", "state", "MB", "from", "gives", "licence", title=f"assets in {store.cache_root()}")
    for asset in catalog():
        state = "ready" if store.is_whole(asset) else "optional, absent" if asset.optional else "absent"
        origin = f"{asset.origin}: {asset.package} {asset.version}"
        table.add_row(asset.name, state, f"{asset.megabytes:.1f}", origin, asset.gives, asset.licence)
    console.print(table)
    return 0


def verify_command(names: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Hash every extracted file: 0 if all is well, 1 if a file is damaged or a needed asset is absent."""
    console = console or Console()
    failed = False
    for asset in select(names or None):
        line, bad = _verdict(asset)
        failed |= bad
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(failed)


def _verdict(asset: Asset) -> tuple[str, bool]:
    if not store.is_present(asset):
        need = "optional" if asset.optional else f"run: {store.fetch_hint(asset)}"
        return f"{asset.name}: absent ({need})", not asset.optional
    try:
        store.verify([asset.name])
    except AssetError as error:
        return f"{asset.name}: {error}; run: {store.fetch_hint(asset)}", True
    return f"{asset.name}: ok", False


class _Reporter:
    """Draws Progress events: one bar per asset at work, one line per asset done."""

    def __init__(self, bars: Bars, console: Console) -> None:
        self._bars, self._console = bars, console
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, event: Progress) -> None:
        asset = event.asset
        if event.stage in _SHOWN:
            detail = f": {event.detail}" if event.detail else ""
            line = f"{asset.name} {asset.version} {_SHOWN[event.stage]}{detail}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            for task in self._tasks.values():
                self._bars.update(task, visible=False)
        elif event.stage == "waiting":
            self._console.print(event.detail, markup=False, highlight=False, soft_wrap=True)
        else:
            self._draw(asset, event.stage, event.num_bytes)

    def _draw(self, asset: Asset, stage: str, num_bytes: int) -> None:
        key = (asset.name, stage)
        if key not in self._tasks:
            total = asset.megabytes * 1e6 if stage == "download" else None
            self._tasks[key] = self._bars.add_task(f"{stage} {asset.name}", total=total)
        self._bars.update(self._tasks[key], completed=num_bytes)


def _credits(assets: Sequence[Asset]) -> Table:
    table = Table("asset", "licence", "credit", title="Licences and credits")
    for asset in assets:
        table.add_row(asset.name, asset.licence, asset.credit)
    return table
