"""The values that travel between the parts: pictures, tasks, tool results, turns, episodes, groups.

Plain frozen data, no behaviour beyond derived properties, no torch. Everything here pickles (it crosses Ray by value).
Coordinates are integers 0..1000 in the named picture, as x0, y0, x1, y1 (x to the right, y down).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1, each 0..1000, in one picture."""
Plane = Literal["axial", "coronal", "sagittal"]
_AXES: Mapping[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
"""The axis of a scan that a plane's slices are counted along."""


class Split(StrEnum):
    """Which subjects a task may use."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class ErrorCode(StrEnum):
    """VISTA-Gym's error taxonomy (arXiv 2511.19773, App. G.1): E1-E5 mechanically, E6 by oracle (rewards.diagnosis)."""

    E1 = "E1"
    """The turn breaks the grammar: bad JSON, no call and no answer, or an unknown tool."""
    E2 = "E2"
    """An argument key is wrong or missing."""
    E3 = "E3"
    """An argument has the wrong type or range."""
    E4 = "E4"
    """The arguments are valid but aim at nothing (empty box, no such mask, no hit), or, by oracle after a wrong answer,
    at the wrong thing."""
    E5 = "E5"
    """The tool failed or its output was ill-formed."""
    E6 = "E6"
    """All calls were valid and their outputs right, the answer is wrong."""


class AnswerKind(StrEnum):
    """How a gold answer is compared."""

    CHOICE = "choice"
    NUMBER = "number"
    TEXT = "text"
    LIST = "list"
    """Several texts in any order, with commas or "and" between them; all of them and no other."""


@dataclass(frozen=True)
class MedImage:
    """One 2-D picture with what it takes to measure on it."""

    pixels: NDArray[Any]
    """[H, W] native values (HU, signal) or [H, W, 3] uint8 colour."""
    modality: str
    """For example "CT", "MRI", "X-ray", "histology"."""
    spacing_mm: tuple[float, float] | None = None
    """Millimetres per pixel (row, column); None if the source does not say."""
    unit: str = "intensity"
    """Unit of `pixels`, for example "HU"."""
    window: tuple[float, float] | None = None
    """Native values shown as black and white; None shows min..max (grey) or the colours as they are."""
    source: str = ""
    """Asset and subject, for credit and lineage."""

    @cached_property
    def key(self) -> str:
        """Content hash (16 hex digits) over pixels, spacing and window: the picture's name everywhere."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes())
        digest.update(repr((self.pixels.shape, str(self.pixels.dtype), self.spacing_mm, self.window)).encode())
        return digest.hexdigest()[:16]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def display(self) -> NDArray[np.uint8]:
        """What an eye (or a policy) sees: [H, W, 3] uint8, windowed if grey."""
        if self.pixels.ndim == 3:
            return self.pixels.astype(np.uint8)
        values = self.pixels.astype(np.float32)
        if self.pixels.dtype.kind == "f" and not np.isfinite(values).all():
            values = np.nan_to_num(values, posinf=0.0, neginf=0.0)  # what is no number is shown as 0
        low, high = self.window or (float(values.min()), float(values.max()))
        grey = np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0) * 255.0
        shown, grey = np.empty((*grey.shape, 3), np.uint8), grey.round().astype(np.uint8)
        for channel in range(3):  # four times as fast as np.repeat
            shown[:, :, channel] = grey
        return shown


@dataclass(frozen=True, kw_only=True)
class VolumeImage(MedImage):
    """A scan: a picture with slices. What `MedImage` says is said of the slice that is shown, so that whatever takes a
    picture takes a scan. Slices run towards the head, rows towards the back, columns towards the patient's left, where
    the file told it.
    """

    slices: NDArray[Any]
    """[S, H, W] or [S, H, W, 3], the shown one among them."""
    slice_index: int
    slice_mm: float | None = None
    """Millimetres from one slice to the next; None for frames in time, which have no other plane."""

    @classmethod
    def of(
        cls,
        slices: NDArray[Any],
        modality: str,
        spacing_mm: tuple[float, float, float] | None = None,
        *,
        unit: str = "intensity",
        window: tuple[float, float] | None = None,
        source: str = "",
    ) -> VolumeImage:
        """The scan with its middle slice shown; `spacing_mm` is slice, row, column."""
        middle = len(slices) // 2
        return cls(
            pixels=slices[middle],
            modality=modality,
            spacing_mm=spacing_mm and spacing_mm[1:],
            unit=unit,
            window=window,
            source=source,
            slices=slices,
            slice_index=middle,
            slice_mm=spacing_mm and spacing_mm[0],
        )

    @cached_property
    def key(self) -> str:
        """Content hash over all slices, and which one is shown."""
        digest = hashlib.sha256(np.ascontiguousarray(self.slices).tobytes())
        told = (self.slices.shape, str(self.slices.dtype), self.spacing_mm, self.slice_mm, self.window, self.slice_index)
        digest.update(repr(told).encode())
        return digest.hexdigest()[:16]

    def num_slices(self, plane: Plane = "axial") -> int:
        """How many slices there are in that plane."""
        return self.slices.shape[_AXES[plane]]

    def at(self, index: int, plane: Plane = "axial") -> MedImage:
        """Slice `index` as a picture of its own with its true spacing; coronal and sagittal ones have the head on top."""
        if plane == "axial":
            pixels, spacing = self.slices[index], self.spacing_mm
        else:
            pixels = np.take(self.slices, index, _AXES[plane])[::-1]
            step = self.spacing_mm and self.spacing_mm[1 if plane == "coronal" else 0]
            spacing = (self.slice_mm, step) if self.slice_mm and step else None
        return MedImage(np.ascontiguousarray(pixels), self.modality, spacing, self.unit, self.window, self.source)


@dataclass(frozen=True)
class Mask:
    """A region of one picture of the episode."""

    image_index: int
    pixels: NDArray[np.bool_]
    """[H, W], the shape of that picture."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One verifiable question. Pictures are opened by its source from `recipe`, never carried."""

    id: str
    source: str
    """Name of the task source that made it."""
    family: str
    """Question family, for example "lesion_size"."""
    split: Split
    subject: str
    modality: str
    question: str
    """As the policy reads it; choices are part of the text."""
    answer: str
    """Gold answer: the choice's text, the number, or the short text."""
    kind: AnswerKind
    choices: tuple[str, ...] = ()
    tolerance: float = 0.0
    """Relative tolerance of a NUMBER answer."""
    slack: float = 0.0
    """Absolute tolerance of a NUMBER answer, in the answer's unit."""
    aliases: tuple[str, ...] = ()
    """Other right answers."""
    grader: str = "words"
    """Registered grader of its answers, or "module:function" (see `tasks.scoring`)."""
    chance: float = 0.0
    """Accuracy of a blind guess in this family, 0..1."""
    num_images: int = 1
    regions: tuple[Box, ...] = ()
    """Gold regions in picture 0, for the expert and for aiming metrics; never shown to the policy."""
    plan: tuple[str, ...] = ()
    """Names of the tools of a shortest solution, in order."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else its source says of it (plain JSON values): form, topic, gold tool arguments. For tables and aiming metrics;
    never shown to the policy."""
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Plain JSON values from which the source opens the pictures, deterministic."""

    @property
    def difficulty(self) -> int:
        """Tool calls that a shortest solution needs: 0, 1, 2, or 3 for three and more."""
        return min(len(self.plan), 3)


@dataclass(frozen=True)
class ToolResult:
    """What a tool gives back. `images` and `masks` get the episode's next indices."""

    text: str
    images: tuple[MedImage, ...] = ()
    masks: tuple[Mask, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Machine-readable values behind `text` (plain JSON values)."""


@dataclass(frozen=True)
class ToolOutcome:
    """A tool call as its caller sees it: a result, or an error that becomes an observation."""

    result: ToolResult | None
    error: ErrorCode | None = None
    message: str = ""
    """What was wrong, in words for the policy."""
    latency_s: float = 0.0
    num_retries: int = 0
    """Infrastructure retries (never scored)."""


@dataclass(frozen=True)
class Observation:
    """What the policy is shown next: text, and pictures that enter the context."""

    text: str
    images: tuple[MedImage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One environment step (Gymnasium's 5-tuple without the reward, which is separate)."""

    observation: Observation
    terminated: bool
    """The policy answered."""
    truncated: bool
    """The budget of calls or turns is spent."""
    info: Mapping[str, Any]
    """turn, tokens_used, calls_used, calls_left, tool_name, tool_ok, error_code, message, latency_s, num_retries,
    arguments, answer, images (lineage), data."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of an episode, for logs, rewards and reports."""

    text: str
    """What the policy wrote."""
    tool: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: ErrorCode | None = None
    observation: str = ""
    image_indices: tuple[int, ...] = ()
    """Episode indices of the pictures that the observation brought."""
    latency_s: float = 0.0


class EpisodeStatus(StrEnum):
    """How an episode ended."""

    ANSWERED = "answered"
    TRUNCATED = "truncated"
    """Budget of calls, turns or tokens spent without an answer."""
    FAILED = "failed"
    """Infrastructure failed for good: not scored, not trained."""


@dataclass(kw_only=True)
class Episode:
    """One finished episode, with the very tokens the engine saw and sampled.

    L: tokens of the whole episode, image placeholders expanded. P: pictures, in order of their placeholders.
    """

    task: Task
    status: EpisodeStatus
    turns: list[Turn]
    answer: str | None
    token_ids: NDArray[np.int32]
    """[L]"""
    loss_mask: NDArray[np.bool_]
    """[L] True where the policy sampled the token."""
    logprobs: NDArray[np.float32]
    """[L] log-probability under the sampling distribution; 0 where not sampled."""
    versions: NDArray[np.int32]
    """[L] policy version that sampled the token; -1 where not sampled."""
    images: list[NDArray[np.uint8]]
    """[P] pictures as the policy saw them, each [H, W, 3]."""
    reward: float = 0.0
    reward_parts: Mapping[str, float] = field(default_factory=dict[str, float])
    correct: bool = False
    error_codes: tuple[ErrorCode, ...] = ()
    """Each error of the episode, in order; after clean calls and a wrong answer what the oracle says, E6 or E4."""
    duration_s: float = 0.0

    @property
    def num_calls(self) -> int:
        """Tool calls that ran without an error."""
        return sum(1 for turn in self.turns if turn.tool is not None and turn.error is None)

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy sampled."""
        return int(self.loss_mask.sum())


PER_TOKEN: Final = ("token_ids", "loss_mask", "logprobs", "versions")
"""An episode's arrays [L]."""


@dataclass(frozen=True)
class EngineLoad:
    """How full an engine is, as it says itself."""

    kv_use: float
    """Share of the KV cache in use, 0..1."""
    num_queued: int = 0
    """Requests that wait for a place in the batch."""


@dataclass(kw_only=True)
class Group:
    """G episodes of one task, trained whole or not at all."""

    id: int
    episodes: list[Episode]
    version_admitted: int
    """Learner's version when the group was admitted."""
    seconds: float = 0.0
    engine_load: EngineLoad | None = None
    """Of the engine that sampled it, when its last episode ended; None if unknown."""
    stored: Any = field(default=None, compare=False, repr=False)
    """Reference under which the cluster's object store holds these very episodes, which does not travel; None: it does not."""

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: what episodes have per token becomes one array of the group, since a transport pays per array."""
        rows = [{name: value for name, value in vars(e).items() if name not in PER_TOKEN} for e in self.episodes]
        columns = {name: [getattr(episode, name) for episode in self.episodes] for name in PER_TOKEN} if rows else {}
        packed = {name: ([*map(len, arrays)], np.concatenate(arrays)) for name, arrays in columns.items()}
        return {**vars(self), "stored": None, "episodes": (rows, packed)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rows, packed = state.pop("episodes")
        for name, (lengths, column) in packed.items():
            start = 0
            for row, length in zip(rows, lengths, strict=True):
                row[name] = column[start : start + length]
                start += length
        vars(self).update(state, episodes=[_episode(row) for row in rows])


def _episode(fields: dict[str, Any]) -> Episode:
    episode = Episode.__new__(Episode)
    vars(episode).update(fields)
    return episode
