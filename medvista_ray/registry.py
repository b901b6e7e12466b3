"""Named things that users can add to: tools, task sources, graders, rewards, algorithms, transports.

Owns the look-up by name, by entry point (`group`) and by "module:Class". A built-in is registered by its import path,
so that looking at names imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from medvista_ray.errors import UnknownNameError, did_you_mean


class Registry:
    """Maps a name to the import path "module:attribute" of the thing, and loads it on demand."""

    def __init__(self, kind: str, builtin: dict[str, str]) -> None:
        self.kind = kind
        self.group = f"medvista_ray.{kind}s"
        self._paths = dict(builtin)

    def add(self, name: str, path: str) -> None:
        """Register (or replace) `name` by its "module:attribute" path, for this process."""
        self._paths[name] = path

    def names(self) -> list[str]:
        """All known names, built-in and from entry points."""
        return sorted({*self._paths, *(e.name for e in entry_points(group=self.group))})

    def load(self, name: str) -> Any:
        """The thing called `name`, or the attribute a "module:attribute" string points to.

        Raises UnknownNameError if there is none.
        """
        path = self._paths.get(name) or (name if ":" in name else self._entry_point(name))
        if path is None:
            raise UnknownNameError(f"{self.kind} {name!r} is not known; {did_you_mean(name, self.names())}")
        module, _, attribute = path.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownNameError(f"{self.kind} {name!r} points to {path!r}, which does not load: {error}") from error

    def _entry_point(self, name: str) -> str | None:
        return next((e.value for e in entry_points(group=self.group) if e.name == name), None)
