"""The trajectory log: one JSON line per finished episode, its pictures beside it by content hash.

Owns what a line holds, and `<folder>/images/<hash>.png`; the files of lines are `segments`'. Invariants: every episode
has a line; lines are written with unbuffered appends, so that they can be read while the run goes on and a kill tears
the last one at the most; a picture is stored once; how many episodes of an arm and step have pictures is bounded
(`PictureQuota`), so the log of a long run stays small.
Written by the composition roots and the coordinator, read by `summary`, `html` and `medvista-ray episodes`.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from medvista_ray.reports.files import write_atomic
from medvista_ray.reports.provenance import Provenance
from medvista_ray.reports.segments import LIVE_NAME, open_live, read_objects
from medvista_ray.types import AnswerKind, Box, Episode, EpisodeStatus, ErrorCode, Split, Turn

logger = logging.getLogger(__name__)

LOG_NAME = LIVE_NAME
IMAGES_NAME = "images"
_SURROGATE = "\\ud"
"""How JSON text escapes half a character; astral characters, which take two, are rare enough to be looked at too."""


class EpisodeRecord(BaseModel):
    """One line of the log: everything of an episode but its tokens and pixels."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    arm: str
    """"train", or the name of the evaluation arm."""
    step: int | None
    """Learner's step in training; None in an evaluation."""
    task_id: str
    source: str
    family: str
    modality: str
    split: Split
    subject: str
    question: str
    gold: str
    kind: AnswerKind
    choices: tuple[str, ...]
    chance: float
    regions: tuple[Box, ...]
    """Gold regions in picture 0."""
    num_task_images: int
    status: EpisodeStatus
    turns: tuple[Turn, ...]
    answer: str | None
    reward: float
    reward_parts: dict[str, float]
    correct: bool
    error_codes: tuple[ErrorCode, ...]
    num_tokens: int
    num_sampled: int
    versions: tuple[int, int] | None
    """Oldest and newest policy version that sampled a token; None if none was sampled."""
    duration_s: float
    images: tuple[str, ...]
    """Content hashes of the pictures, in the episode's order."""
    has_pictures: bool
    """Whether those pictures were stored."""
    tool_versions: dict[str, str] = {}
    """Version of each tool on offer (see `provenance`); empty in logs that did not record it."""
    prompt_version: str = ""
    token_versions: tuple[tuple[int, int], ...] | None = None
    """Policy version of every sampled token, as runs (version, number of tokens); None unless asked for."""

    @property
    def num_attempts(self) -> int:
        """Tool calls that the policy made, failed ones included."""
        return sum(1 for turn in self.turns if turn.tool is not None)

    @property
    def num_calls(self) -> int:
        """Tool calls that ran without an error."""
        return sum(1 for turn in self.turns if turn.tool is not None and turn.error is None)


@dataclass
class PictureQuota:
    """Which episodes keep their pictures: a few per training step, a few per family and outcome in an evaluation."""

    per_step: int = 4
    """Episodes with pictures of one arm at one training step."""
    per_cell: int = 8
    """Episodes with pictures of one arm, family and outcome (right, wrong) in an evaluation."""
    _taken: Counter[tuple[object, ...]] = field(default_factory=lambda: Counter[tuple[object, ...]]())

    def take(self, episode: Episode, arm: str, step: int | None) -> bool:
        """Whether this episode's pictures are kept; counts it if so."""
        cell, limit = (arm, step), self.per_step
        if step is None:
            cell, limit = (arm, episode.task.family, episode.correct), self.per_cell
        if self._taken[cell] >= limit:
            return False
        self._taken[cell] += 1
        return True


class TrajectoryLog:
    """Appends finished episodes to a folder. Safe to call from several threads."""

    def __init__(
        self,
        folder: Path,
        quota: PictureQuota | None = None,
        provenance: Provenance | None = None,
        token_versions: bool = False,
    ) -> None:
        """Open (or continue) the log in `folder`; `token_versions` records a policy version per sampled token.

        Raises OSError if the folder cannot be written.
        """
        self.folder = folder
        self._images = folder / IMAGES_NAME
        self._images.mkdir(parents=True, exist_ok=True)
        self._file = open_live(folder)
        self._quota = quota or PictureQuota()
        self._provenance = provenance or Provenance()
        self._token_versions = token_versions
        self._lock = Lock()
        self._hashed: dict[int, tuple[NDArray[np.uint8], str]] = {}
        """By place in an episode: the picture hashed there last."""

    def append(self, episode: Episode, arm: str, step: int | None, keep_images: bool | None = None) -> EpisodeRecord:
        """Log one scored episode; `keep_images` overrides the quota. Returns what was written."""
        return self.extend([episode], arm, step, keep_images)[0]

    def extend(
        self, episodes: Iterable[Episode], arm: str, step: int | None, keep_images: bool | None = None
    ) -> list[EpisodeRecord]:
        """Log scored episodes with one append; see `append`. Returns what was written."""
        with self._lock:
            records = [self._prepare(episode, arm, step, keep_images) for episode in episodes]
            self._file.write(b"".join(_line(record.model_dump(mode="python")) + b"\n" for record in records))
            return records

    def _prepare(self, episode: Episode, arm: str, step: int | None, keep_images: bool | None) -> EpisodeRecord:
        """What is to be written; its pictures are stored already, so that no line names one that is not there."""
        keep = self._quota.take(episode, arm, step) if keep_images is None else keep_images
        keys = tuple(self._key(place, image) for place, image in enumerate(episode.images))
        if keep:
            self._store(dict(zip(keys, episode.images, strict=True)))
        return _record(episode, arm, step, keys, keep, self._versions(episode))

    def _key(self, place: int, pixels: NDArray[np.uint8]) -> str:
        """`picture_key`, taken once of a question's pictures, which the episodes of a group share."""
        known, key = self._hashed.get(place, (None, ""))
        if known is pixels:
            return key
        key = picture_key(pixels)
        if not pixels.flags.writeable:  # one that can be written to may hold something else by the next time
            self._hashed[place] = (pixels, key)
        return key

    def _versions(self, episode: Episode) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "tool_versions": self._provenance.tool_versions,
            "prompt_version": self._provenance.prompt_version,
        }
        if self._token_versions:
            fields["token_versions"] = _runs(episode.versions[episode.loss_mask])
        return fields

    def _store(self, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        for key, pixels in pictures.items():
            path = self._images / f"{key}.png"
            if not path.exists():
                write_atomic(path, _png(pixels))

    def close(self) -> None:
        """Close the file; every line is on its way to the disk already."""
        self._file.close()

    def __enter__(self) -> TrajectoryLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_episodes(folder: Path, arm: str | None = None, with_pictures: bool = False) -> Iterator[EpisodeRecord]:
    """The logged episodes in order, of one arm if `arm` is given. Torn lines are skipped with a warning."""
    for line in read_objects(folder):
        if arm is not None and line.get("arm") != arm:
            continue
        try:
            record = EpisodeRecord.model_validate(line)
        except ValidationError as error:
            logger.warning("%s holds a line that is no episode, skipped: %s", folder / LOG_NAME, error)
            continue
        if record.has_pictures or not with_pictures:
            yield record


def picture_path(folder: Path, key: str) -> Path:
    """Where the picture of that content hash is, if it was stored."""
    return folder / IMAGES_NAME / f"{key}.png"


def picture_key(pixels: NDArray[np.uint8]) -> str:
    """Content hash (16 hex digits) of a picture as the policy saw it, [H, W, 3]."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
    """The same value in JSON's own types.

    A policy's arguments may hold what JSON text cannot: NaN, infinities, lone surrogates ("\\ud800" is valid inside
    JSON). They become text or "?", so that one odd call never costs a line of the log.
    """
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode()
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(plain(str(key))): plain(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("list[object]", value)]
    if isinstance(value, np.generic):
        return plain(cast("Any", value.item()))
    return plain(str(value))


def _line(value: dict[str, Any]) -> bytes:
    """`plain` as JSON. `plain` itself, which takes longer than all the rest, only where something is odd."""
    with suppress(TypeError, ValueError):  # no type of JSON's, or not a number
        if _SURROGATE not in (line := json.dumps(value, allow_nan=False)):
            return line.encode()
    return json.dumps(plain(value), allow_nan=False).encode()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _runs(values: NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
    """[L] as runs (value, length)."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    lengths = np.diff(starts, append=len(values))
    return tuple((int(values[start]), int(length)) for start, length in zip(starts, lengths, strict=True))


def _record(
    episode: Episode, arm: str, step: int | None, keys: tuple[str, ...], kept: bool, provenance: dict[str, Any]
) -> EpisodeRecord:
    task, sampled = episode.task, episode.versions[episode.loss_mask]
    # No validation: the values come from typed data, and a lone surrogate in a policy's text would be refused here.
    return EpisodeRecord.model_construct(
        arm=arm,
        step=step,
        task_id=task.id,
        source=task.source,
        family=task.family,
        modality=task.modality,
        split=task.split,
        subject=task.subject,
        question=task.question,
        gold=task.answer,
        kind=task.kind,
        choices=task.choices,
        chance=task.chance,
        regions=task.regions,
        num_task_images=task.num_images,
        status=episode.status,
        turns=tuple(episode.turns),
        answer=episode.answer,
        reward=float(episode.reward),
        reward_parts={name: float(value) for name, value in episode.reward_parts.items()},
        correct=bool(episode.correct),
        error_codes=tuple(episode.error_codes),
        num_tokens=len(episode.token_ids),
        num_sampled=episode.num_sampled,
        versions=(int(sampled.min()), int(sampled.max())) if sampled.size else None,
        duration_s=episode.duration_s,
        images=keys,
        has_pictures=kept,
        **provenance,
    )
