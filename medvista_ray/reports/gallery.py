"""Episodes as the page shows them: which ones, with which pictures and boxes, and how the other arms answered.

Owns the choice (by seed over families and outcomes, never by hand) and the reading of a turn's arguments. A policy
wrote those: anything that is not a picture index or a box is simply not drawn. Called by `html`.
"""

from __future__ import annotations

import base64
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from medvista_ray.reports.trajectory import EpisodeRecord, picture_path
from medvista_ray.types import Box, EpisodeStatus, Turn

NUM_EPISODES = 12
_TAG = re.compile(r"(</?(?:think|tool_call|answer)>)")


@dataclass(frozen=True)
class DrawnBox:
    """A box on a picture, 0..1000, with its label: a turn number."""

    box: Box
    label: str

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]


@dataclass
class Picture:
    """One picture of an episode, as the policy saw it, with what is drawn over it."""

    index: int
    uri: str
    """data: URI of the PNG."""
    gold: list[DrawnBox] = field(default_factory=list[DrawnBox])
    policy: list[DrawnBox] = field(default_factory=list[DrawnBox])


@dataclass(frozen=True)
class DrawnTurn:
    """One turn with the pictures that its observation brought."""

    number: int
    turn: Turn
    pieces: tuple[tuple[str, str], ...]
    """The turn's text as (tag name or "", text) pieces."""
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class DrawnEpisode:
    """One episode, ready for the template."""

    record: EpisodeRecord
    pictures: tuple[Picture, ...]
    """The question's own."""
    turns: tuple[DrawnTurn, ...]
    others: tuple[tuple[str, bool, str], ...]
    """Other arms on the same task: name, right or wrong, answer."""


def choose(records: Iterable[EpisodeRecord], num: int = NUM_EPISODES, seed: int = 0) -> list[EpisodeRecord]:
    """About `num` episodes with pictures: families in turn, two right ones for each wrong one, drawn by `seed`."""
    cells: defaultdict[tuple[str, bool], list[EpisodeRecord]] = defaultdict(list)
    for record in records:
        if record.has_pictures and record.status is not EpisodeStatus.FAILED:
            cells[record.family, record.correct].append(record)
    generator = random.Random(seed)
    for cell in cells.values():
        generator.shuffle(cell)
    chosen: list[EpisodeRecord] = []
    families = sorted({family for family, _ in cells})
    for lap in range(num):
        for position, family in enumerate(families):
            want = (lap + position) % 3 != 2
            cell = cells[family, want] or cells[family, not want]
            if cell and len(chosen) < num:
                chosen.append(cell.pop())
    return sorted(chosen, key=lambda record: (record.family, not record.correct))


def draw(record: EpisodeRecord, folder: Path, arms: Mapping[str, Sequence[EpisodeRecord]]) -> DrawnEpisode:
    """Lay one episode out; pictures come from `folder` (the trajectory log's)."""
    pictures = {index: _picture(index, key, folder) for index, key in enumerate(record.images)}
    if 0 in pictures:
        pictures[0].gold.extend(DrawnBox(box, "gold") for box in record.regions)
    turns: list[DrawnTurn] = []
    for number, turn in enumerate(record.turns, start=1):
        for index, drawn in boxes_of(turn, str(number)):
            if index in pictures:
                _add(pictures[index].policy, drawn)
        brought = tuple(pictures[index] for index in turn.image_indices if index in pictures)
        turns.append(DrawnTurn(number, turn, tuple(split_tags(turn.text)), brought))
    own = tuple(pictures[index] for index in range(record.num_task_images) if index in pictures)
    return DrawnEpisode(record, own, tuple(turns), tuple(_others(record, arms)))


def boxes_of(turn: Turn, label: str) -> list[tuple[int, DrawnBox]]:
    """The boxes among a turn's arguments and the picture each is in: every value of four numbers."""
    index = turn.arguments.get("image_index", 0)
    if not isinstance(index, int) or turn.tool is None:
        return []
    boxes = (_box(value) for value in turn.arguments.values())
    return [(index, DrawnBox(box, label)) for box in boxes if box is not None]


def split_tags(text: str) -> list[tuple[str, str]]:
    """A turn's text in pieces: ("think", ...), ("tool_call", ...), ("answer", ...), ("", anything else)."""
    pieces: list[tuple[str, str]] = []
    current = ""
    for part in _TAG.split(text):
        if _TAG.fullmatch(part):
            current = "" if part.startswith("</") else part.strip("<>")
        elif part.strip():
            pieces.append((current, part.strip()))
    return pieces


def _box(value: Any) -> Box | None:
    if not isinstance(value, list | tuple):
        return None
    numbers = list(cast("Sequence[object]", value))
    if len(numbers) != 4 or not all(isinstance(n, int | float) and -1e6 < n < 1e6 for n in numbers):
        return None
    x0, y0, x1, y1 = (min(max(round(float(cast("float", n))), 0), 1000) for n in numbers)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _add(boxes: list[DrawnBox], new: DrawnBox) -> None:
    """Append a box; one that is there already gets the new label beside its own."""
    for position, old in enumerate(boxes):
        if old.box == new.box:
            boxes[position] = DrawnBox(old.box, f"{old.label}, {new.label}")
            return
    boxes.append(new)


def _picture(index: int, key: str, folder: Path) -> Picture:
    path = picture_path(folder, key)
    data = base64.b64encode(path.read_bytes()).decode() if path.exists() else ""
    return Picture(index, f"data:image/png;base64,{data}" if data else "")


def _others(record: EpisodeRecord, arms: Mapping[str, Sequence[EpisodeRecord]]) -> Iterable[tuple[str, bool, str]]:
    for arm, episodes in arms.items():
        match = next((e for e in episodes if e.task_id == record.task_id), None)
        if arm != record.arm and match is not None:
            yield arm, match.correct, match.answer if match.answer is not None else "no answer"
