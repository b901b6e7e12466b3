"""The generators: which one works on what, which version each serves, and how a broken one comes back.

Invariants: a generator gets work only after it has completely loaded a published version; its versions only grow
while it lives; loads run one after another per generator and never stop its work (`load_when_empty`: they wait until it
has none, and none begins meanwhile); one death is handled once, however many of its groups report it. Called by
`flow.loop`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from medvista_ray.errors import ConfigError, GeneratorDiedError, InvariantError, WeightUpdateError
from medvista_ray.flow.background import Background
from medvista_ray.flow.concurrency import ConcurrencyLimit
from medvista_ray.flow.protocols import Generator
from medvista_ray.flow.slots import BUSY, NOTHING_LOADED, Limits, Slot
from medvista_ray.flow.timing import Occupancy
from medvista_ray.types import Group, Task

log = logging.getLogger(__name__)

MAX_LOAD_ATTEMPTS = 3
"""Failed loads in a row before the generator is restarted."""
MAX_LOADS_KEPT = 10_000
"""Loads whose seconds are remembered; a long run of many generators has millions."""


class Fleet:
    """All generators. `on_change` is called whenever one may take work again."""

    def __init__(
        self,
        generators: Sequence[Generator],
        background: Background,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        limits: Limits,
        *,
        load_when_empty: bool = False,
        max_groups: int = 10**9,
    ) -> None:
        """`max_groups`: in flight per generator, at most; less while an engine says that it is full."""
        self._max_groups = max_groups
        self._load_when_empty = load_when_empty
        self._background = background
        self._clock = clock
        self._on_change = on_change
        self._limits = limits
        self._manifest, self._target = "", NOTHING_LOADED
        self.slots = [self._slot(generator) for generator in generators]
        self.load_seconds: deque[dict[str, float]] = deque(maxlen=MAX_LOADS_KEPT)
        """What the latest loads reported: seconds by phase."""
        self.num_loads = 0
        """Over the whole run."""
        self._by_load: dict[int, dict[Slot, None]] = {}
        """Usable slots by their number of groups, so that finding the least loaded costs the same for any number."""
        self._new_loads: list[dict[str, float]] = []

    async def start(self, manifest: str, version: int) -> None:
        """Wait until every generator serves `version`. Raises what the first broken one raises."""
        self._manifest, self._target = manifest, version
        await asyncio.gather(*(self._bring_up(slot) for slot in self.slots))
        self._on_change()

    def publish(self, manifest: str, version: int) -> None:
        """A new version exists: every generator loads it while it works; one that is still loading skips to it."""
        if version <= self._target:
            raise InvariantError(f"version {version} published after {self._target}")
        self._manifest, self._target = manifest, version
        for slot in self.slots:
            self._load_if_due(slot)
            self._settle(slot)

    def add(self, generator: Generator) -> None:
        """A generator joins: it gets work once it serves the newest version. Raises ConfigError if its name is taken."""
        if any(slot.generator.name == generator.name for slot in self.slots):
            raise ConfigError(f"generator {generator.name!r} is in the run already")
        slot = self._slot(generator)
        self.slots.append(slot)
        self._background.start(self._join(slot))

    async def remove(self, name: str) -> None:
        """A generator leaves: it gets no more work; returns when its last group is back. Nothing is sampled again.

        Raises ConfigError if there is none of that name, or no other one that works.
        """
        leaving = [slot for slot in self.slots if slot.generator.name == name]
        if not leaving or not any(slot.usable for slot in self.slots if slot not in leaving):
            raise ConfigError(f"generator {name!r} cannot leave: {'no other works' if leaving else 'there is none'}")
        for slot in leaving:
            slot.lost, slot.usable = True, False
            slot.emptied.clear()
            self._settle(slot)
            if slot.num_groups:
                await slot.emptied.wait()
            self.slots.remove(slot)

    def pick(self, capacity: Callable[[int], int]) -> Slot | None:
        """The least-loaded generator whose version leaves `capacity`, which grows with the version, or None."""
        if capacity(self._target) < 1:
            return None
        allowed: dict[int, bool] = {}  # few versions serve at a time, on however many generators
        for load in sorted(self._by_load):
            for slot in self._by_load[load]:
                if slot.version not in allowed:
                    allowed[slot.version] = capacity(slot.version) > 0
                held = self._load_when_empty and slot.loading
                if allowed[slot.version] and not held and load < slot.concurrency.limit:
                    return slot
        return None

    def reserve(self, slot: Slot) -> int:
        """Count a group on `slot` from now on. Returns the slot's life, for `run_group`."""
        slot.num_groups += 1
        self._settle(slot)
        return slot.life

    async def run_group(self, slot: Slot, life: int, group_id: int, task: Task, group_size: int) -> Group | None:
        """Run a reserved group; None if the generator died, hung or failed, whose recovery is then under way."""
        try:
            group = await self._attempt(slot, life, group_id, task, group_size)
        finally:
            slot.num_groups -= 1
            if slot.num_groups == 0:
                slot.emptied.set()
        self._load_if_due(slot)
        self._settle(slot)
        return group

    def take_new_loads(self) -> list[dict[str, float]]:
        """What the loads since the last call reported."""
        new, self._new_loads = self._new_loads, []
        return new

    def idle_fraction(self) -> float:
        """Mean over the generators of the share of time without a group, 0..1."""
        now_s = self._clock()
        return sum(slot.occupancy.idle_fraction(BUSY, now_s) for slot in self.slots) / len(self.slots)

    def _slot(self, generator: Generator) -> Slot:
        return Slot(generator, Occupancy("starting", self._clock()), ConcurrencyLimit(self._max_groups))

    async def _join(self, slot: Slot) -> None:
        try:
            await self._bring_up(slot)
        except Exception as error:  # fault boundary: a generator that does not come up is tried again, like a broken one
            self._fault(slot, slot.life, error)
        self._on_change()

    async def _bring_up(self, slot: Slot) -> None:
        """Wait for the engine and load the newest version, however often a newer one appears."""
        slot.version, life = NOTHING_LOADED, slot.life
        await asyncio.wait_for(slot.generator.ready(), self._limits.ready_s)
        num_failed = 0
        while slot.version < self._target:
            try:
                await self._load(slot, life)
            except WeightUpdateError:
                num_failed += 1
                if num_failed == MAX_LOAD_ATTEMPTS:
                    raise
        slot.usable = not slot.lost
        self._settle(slot)

    async def _attempt(self, slot: Slot, life: int, group_id: int, task: Task, group_size: int) -> Group | None:
        try:
            if slot.life != life:
                return None
            async with asyncio.timeout(self._limits.group_s):  # unlike wait_for it makes no task of its own
                group = await slot.generator.run_group(group_id, task, group_size)
        except Exception as error:  # fault boundary: whatever breaks a generator, its groups go elsewhere
            self._fault(slot, life, error)
            return None
        slot.policy.on_success()
        if group.engine_load is not None:
            slot.concurrency.observe(group.engine_load, slot.num_groups)
        return group

    def _load_if_due(self, slot: Slot) -> None:
        """Begin to load the newest version, unless that is under way or has to wait for the slot's groups."""
        due = slot.usable and not slot.loading and slot.version < self._target
        if due and not (self._load_when_empty and slot.num_groups):
            slot.loading = True
            self._background.start(self._load_in_flight(slot, slot.life))

    async def _load(self, slot: Slot, life: int) -> None:
        manifest, version = self._manifest, self._target
        if version <= slot.version:
            raise InvariantError(f"{slot.generator.name} would go from version {slot.version} to {version}")
        async with asyncio.timeout(self._limits.load_s):
            seconds = await slot.generator.load_version(manifest)
        if slot.life != life:
            raise GeneratorDiedError(f"{slot.generator.name} was replaced while it loaded version {version}")
        slot.version = version
        self.load_seconds.append(seconds)
        self._new_loads.append(seconds)
        self.num_loads += 1
        self._settle(slot)

    def _settle(self, slot: Slot) -> None:
        """Account for what a generator does from now on, and for its load. Called whenever either may have changed."""
        slot.occupancy.enter(slot.activity(self._target), self._clock())
        load = slot.num_groups if slot.usable else None
        if load == slot.load:
            return
        if slot.load is not None:
            del self._by_load[slot.load][slot]
            if not self._by_load[slot.load]:
                del self._by_load[slot.load]
        if load is not None:
            self._by_load.setdefault(load, {})[slot] = None
        slot.load = load

    async def _load_in_flight(self, slot: Slot, life: int) -> None:
        num_failed = 0
        try:
            while slot.version < self._target and slot.life == life:
                try:
                    await self._load(slot, life)
                except InvariantError:
                    raise
                except Exception as error:  # fault boundary: the old version serves on, or the generator is replaced
                    num_failed += 1
                    if isinstance(error, GeneratorDiedError) or num_failed == MAX_LOAD_ATTEMPTS:
                        self._fault(slot, life, error)
                    else:
                        log.warning("%s keeps version %d, load failed: %s", slot.generator.name, slot.version, error)
                self._on_change()
        finally:
            slot.loading = False
        self._load_if_due(slot)  # the generator may have been replaced while its predecessor's load was under way
        self._on_change()

    def _fault(self, slot: Slot, life: int, error: BaseException) -> None:
        if slot.life != life or slot.lost:
            return
        slot.life += 1
        slot.usable = False
        log.warning("%s broke with %d groups in flight: %r; recovering", slot.generator.name, slot.num_groups, error)
        self._settle(slot)
        self._background.start(self._recover(slot, error))
        self._on_change()

    async def _recover(self, slot: Slot, error: BaseException) -> None:
        while not slot.lost and (delay_s := slot.policy.on_fault()) is not None:
            await asyncio.sleep(delay_s)
            try:
                if not isinstance(error, GeneratorDiedError):
                    await slot.generator.restart()
                await self._bring_up(slot)
            except Exception as again:  # fault boundary: the next attempt, or giving up, follows
                log.warning("%s is not back yet: %r", slot.generator.name, again)
                error = again
            else:
                log.warning("%s is back and serves version %d", slot.generator.name, slot.version)
                self._on_change()
                return
        if slot.lost:  # it left the run
            return
        slot.lost = True
        self._settle(slot)
        log.error("%s is given up after %d faults: %r", slot.generator.name, slot.policy.num_faults, error)
        if all(s.lost for s in self.slots):
            raise GeneratorDiedError(f"no generator is left; the last one failed with {error!r}") from error
