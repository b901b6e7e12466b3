"""What an environment is made of, by name: a task source, the tools on offer, the budgets, the reward.

Owns `EnvSettings` and `Workshop`, which loads source and tools once and makes any number of environments from them.
Invariant: nothing here differs from what the training job uses; only the numbers do. Called by the Gymnasium facade,
the vector environment and the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, ValidationError

from medvista_ray.config import BenchConfig, Positive, RewardConfig, Section, ToolsConfig
from medvista_ray.envs.episode import Budget, MedEnv
from medvista_ray.envs.session import Session
from medvista_ray.envs.switches import SwitchedClient
from medvista_ray.errors import ConfigError, did_you_mean
from medvista_ray.tasks.source import TaskSource, load_source
from medvista_ray.tools.base import ToolClient
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import Split, Task


class EnvSettings(Section):
    """Keyword arguments of `gymnasium.make("MedVista-v0", ...)` and of the adapters."""

    split: Split = Split.TRAIN
    """Which subjects the tasks are about."""
    bench: BenchConfig = BenchConfig()
    """The task source and how many tasks of it."""
    tools: tuple[str, ...] = ToolsConfig().names
    """Registered tool names or "module:Class"; empty: no tools."""
    off: tuple[str, ...] = ()
    """Tools or whole families switched off."""
    max_calls: Positive = 6
    """Tool calls per episode."""
    max_tokens: Positive | None = None
    """Sampled tokens per episode; needs `count_tokens`."""
    max_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds per episode."""
    image_side: Positive = 224
    """Pictures are shown scaled to this side, in pixels (square)."""
    reward: RewardConfig = RewardConfig()
    """Weights of the reward."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> EnvSettings:
        """Settings from keyword arguments. Raises ConfigError naming the key, the value and the rule."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("; ".join(_words(item) for item in error.errors())) from error


def _words(item: Mapping[str, Any]) -> str:
    where = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"unknown key {where!r}; {did_you_mean(where, EnvSettings.model_fields)}"
    return f"{where} = {item['input']!r}: {item['msg']}"


def _no_tokens(_: str) -> int:
    return 0


class Workshop:
    """Source and tools, loaded on first use and shared by all environments made here.

    `source` and `client` replace what the settings name: a source of your own, tools served elsewhere.
    """

    def __init__(
        self,
        settings: EnvSettings,
        *,
        source: TaskSource | None = None,
        client: ToolClient | None = None,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        if settings.max_tokens is not None and count_tokens is None:
            raise ConfigError(f"max_tokens = {settings.max_tokens}: count_tokens (text -> number of tokens) is needed with it")
        self.settings = settings
        self.count_tokens: Callable[[str], int] = count_tokens or _no_tokens
        self._source, self._client = source, client
        self._owned: LocalToolClient | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles as its recipe: what was loaded is loaded again where it arrives."""
        loaded = ("source", "tasks", "client")
        return {name: value for name, value in self.__dict__.items() if name not in loaded} | {"_owned": None}

    @cached_property
    def source(self) -> TaskSource:
        """Where tasks come from."""
        return self._source or load_source(self.settings.bench)

    @cached_property
    def tasks(self) -> Sequence[Task]:
        """The tasks of the split. Raises ConfigError if there is none."""
        tasks = self.source.tasks(self.settings.split)
        if not tasks:
            raise ConfigError(f"split = {self.settings.split.value!r}: the task source has no task in it")
        return tasks

    @cached_property
    def client(self) -> ToolClient | None:
        """The tools on offer, after the switches; None without tools."""
        client = self._client
        if client is None and self.settings.tools:
            client = self._owned = LocalToolClient(self.settings.tools)
        return SwitchedClient(client, self.settings.off) if client is not None and self.settings.off else client

    def task(self, key: str | int) -> Task:
        """A task by id or by position. Raises ConfigError if there is none."""
        if isinstance(key, int):
            if not 0 <= key < len(self.tasks):
                raise ConfigError(f"task = {key}: 0..{len(self.tasks) - 1} in split {self.settings.split.value!r}")
            return self.tasks[key]
        found = next((task for task in self.tasks if task.id == key), None)
        if found is None:
            raise ConfigError(f"task = {key!r}: no such task in split {self.settings.split.value!r}")
        return found

    def session(self) -> Session:
        """A new environment with its turns kept and scored."""
        settings = self.settings
        budget = Budget(tokens=settings.max_tokens, seconds=settings.max_s)
        env = MedEnv(self.client, self.source.open, settings.max_calls, budget)
        return Session(env, settings.reward)

    def close(self) -> None:
        """End the tools that were started here; safe to call twice."""
        if self._owned is not None:
            self._owned.close()
