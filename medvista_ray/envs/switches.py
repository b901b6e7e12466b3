"""Tools switched on and off, one by one or by family, around any `ToolClient`.

Invariant: a tool that is off is off everywhere: it is not in `specs` (so not in the prompt either) and a call of it is
the same E1 as a call of a tool that never existed. Called by whoever builds environments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from medvista_ray.errors import ConfigError, did_you_mean
from medvista_ray.tools.base import Family, Tool, ToolClient, ToolContext
from medvista_ray.tools.catalog import unknown_tool
from medvista_ray.tools.execution import failure
from medvista_ray.types import ToolOutcome


class SwitchedClient:
    """The tools of `client` but for those named in `off`: tool names or families. Implements `ToolClient`.

    Raises ConfigError for a name that is neither a tool on offer nor a family.
    """

    def __init__(self, client: ToolClient, off: Iterable[str]) -> None:
        off = tuple(off)
        valid = {*get_args(Family), *(spec.name for spec in client.specs)}
        for name in off:
            if name not in valid:
                raise ConfigError(f"off: {name!r} is neither a tool on offer nor a family; {did_you_mean(name, valid)}")
        self._client = client
        self.specs: tuple[type[Tool], ...] = tuple(s for s in client.specs if s.name not in off and s.family not in off)
        self._names = {spec.name for spec in self.specs}

    async def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """As the client's own; E1 for a tool that is off. Raises ToolInfrastructureError as the client does."""
        if name not in self._names:
            return failure(*unknown_tool(name, self.specs))
        return await self._client.call(name, arguments, context)

    def close(self) -> None:
        """As the client's own."""
        self._client.close()
