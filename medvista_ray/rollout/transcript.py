"""The tokens of an episode while it runs: un-expanded for the engine, expanded for the learner.

Invariant (tokens in, tokens out): after every completion the engine's expanded prompt starts with the expanded ids
known so far, and what follows is the last observation with nothing but its pictures expanded. Anything else is an
InvariantError, because training would then read other tokens than were sampled. Called by `rollout.loop` alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.errors import InvariantError
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.engine import Completion, Prompt
from medvista_ray.rollout.pictures import policy_picture
from medvista_ray.types import Episode, Observation

PIXELS_PER_TOKEN = 28
"""Side of the square that one image token covers (14-pixel patches merged 2 x 2). An estimate, until the engine's first
expanded prompt tells what a picture really costs."""
_PICTURE_FRAME = 2
"""Start and end token around a picture."""


class Transcript:
    """Grows by prompt, completion, observation, completion, ...; `episode` freezes it."""

    def __init__(self, chat: ChatFormat, image_side: int) -> None:
        self._chat = chat
        self._side = image_side
        self._pictures: list[NDArray[np.uint8]] = []
        self._unexpanded: list[int] = []
        self._pending: list[int] = []  # un-expanded ids since the last completion
        self._expanded: list[int] = []
        self._sampled: list[tuple[int, Completion]] = []  # (position in _expanded, completion)
        self._closed = False
        self._tokens_per_picture = (-(-image_side // PIXELS_PER_TOKEN)) ** 2 + _PICTURE_FRAME

    def begin(self, system: str, observation: Observation) -> None:
        """Set the first prompt."""
        self._extend(self._chat.begin(system, observation), observation)

    def observe(self, observation: Observation) -> None:
        """Append what the policy is shown next."""
        self._extend(self._chat.observe(observation, closed=self._closed), observation)

    def prompt(self) -> Prompt:
        """What the engine runs on next."""
        return Prompt(list(self._unexpanded), list(self._pictures))

    @property
    def expected_length(self) -> int:
        """Tokens of the next prompt once expanded."""
        num_pictures = self._chat.num_pictures(self._pending)
        return len(self._expanded) + len(self._pending) + num_pictures * self._tokens_per_picture

    def append(self, completion: Completion) -> None:
        """Take a completion of `prompt()`. Raises InvariantError if its ids do not continue this transcript."""
        self._check(completion)
        self._measure(completion)
        self._expanded = [*completion.prompt_ids, *completion.token_ids]
        self._sampled.append((len(completion.prompt_ids), completion))
        self._unexpanded += completion.token_ids
        self._pending = []
        self._closed = completion.token_ids[-1:] == [self._chat.end_id]

    def episode(self, **fields: Any) -> Episode:
        """The finished episode; it ends with the last sampled token. `fields` are the Episode's others."""
        length = len(self._expanded)
        mask, versions = np.zeros(length, np.bool_), np.full(length, -1, np.int32)
        logprobs = np.zeros(length, np.float32)
        for start, completion in self._sampled:
            span = slice(start, start + len(completion.token_ids))
            mask[span], versions[span], logprobs[span] = True, completion.versions, completion.logprobs
        shown = self._pictures[: self._chat.num_pictures(self._expanded)]
        ids = np.asarray(self._expanded, np.int32)
        return Episode(token_ids=ids, loss_mask=mask, logprobs=logprobs, versions=versions, images=shown, **fields)

    def _extend(self, ids: list[int], observation: Observation) -> None:
        self._pending = ids
        self._unexpanded = [*self._unexpanded, *ids]
        self._pictures += [policy_picture(image, self._side) for image in observation.images]

    def _check(self, completion: Completion) -> None:
        chat, known = self._chat, len(self._expanded)
        fresh = completion.prompt_ids[known:]
        if completion.prompt_ids[:known] != self._expanded:
            raise InvariantError("the engine's prompt does not repeat the ids of the earlier turns")
        if chat.without_pictures(fresh) != chat.without_pictures(self._pending):
            raise InvariantError("the engine's prompt changed text ids of the observation")
        if chat.num_pictures(fresh) != chat.num_pictures(self._pending):
            raise InvariantError("pictures and runs of image tokens do not match one to one")
        if chat.banned.intersection(completion.token_ids):
            raise InvariantError("the engine sampled a banned token")
        num_sampled = len(completion.token_ids)
        if len(completion.logprobs) != num_sampled or len(completion.versions) != num_sampled:
            raise InvariantError("sampled tokens, log-probs and versions differ in number")
        earlier = [int(part.versions[-1]) for _, part in self._sampled if len(part.versions)]
        if np.any(np.diff([*earlier[-1:], *completion.versions]) < 0):
            raise InvariantError("the policy version went backwards within an episode")

    def _measure(self, completion: Completion) -> None:
        """Learn from the engine what a picture costs (all have one side)."""
        num_pictures = self._chat.num_pictures(self._pending)
        growth = len(completion.prompt_ids) - len(self._expanded) - len(self._pending)
        if num_pictures:
            self._tokens_per_picture = -(-growth // num_pictures)
