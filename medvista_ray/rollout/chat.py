"""Chat at the level of tokens: ChatML ids for any tokenizer that has <|im_start|> and <|im_end|>.

Owns which ids stand for a picture, which ids a policy must never sample, and that TEXT never becomes structure: a
question, a tool's reply or a policy that writes "<IMG_CONTEXT>" or "<|im_end|>" in prose gets ordinary text tokens
for it. Invariant: ids are only ever appended, nothing is rendered twice. Called by the loop, the generators and the
learner (bans).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from medvista_ray.errors import ConfigError, did_you_mean
from medvista_ray.protocol import TAGS
from medvista_ray.types import MedImage, Observation

START, END = "<|im_start|>", "<|im_end|>"
PICTURE_TOKENS = {
    "internvl": ("<IMG_CONTEXT>",),
    "qwen2_5_vl": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    "qwen3_vl": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
}
"""Model type -> what one picture is in an un-expanded prompt; the pad is the only token that is expanded."""
TEXT_CACHE = 2048
"""Texts whose ids are remembered."""
_PADS = ("<IMG_CONTEXT>", "<|image_pad|>")
_STRUCTURAL = (
    *("<|endoftext|>", START, "<img>", "</img>", "<IMG_CONTEXT>", "<image>", "<video>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> AddedToken (`content`, `special`)."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Ids to text."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        ...


def banned_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids a policy must never sample, ascending: every picture, start, padding and other special token.

    The end of a turn and the protocol's tags stay allowed. Engine and learner take the same bans, or their log-probs
    differ.
    """
    return tuple(sorted(set(_reserved(tokenizer).values())))


def _reserved(tokenizer: Tokenizer) -> dict[str, int]:
    """Structural tokens by name, END and the protocol's tags excepted."""
    vocab = tokenizer.get_vocab()
    special = [added.content for added in tokenizer.added_tokens_decoder.values() if added.special]
    names = {*special, *(name for name in _STRUCTURAL if name in vocab)}
    return {name: vocab[name] for name in names - {END, *TAGS}}


class ChatFormat:
    """Renders observations to ids, and sampled ids to text."""

    def __init__(self, tokenizer: Tokenizer, picture_tokens: Sequence[str]) -> None:
        vocab = tokenizer.get_vocab()
        missing = [name for name in (START, END, *picture_tokens) if name not in vocab]
        if missing:
            raise ConfigError(f"the policy's tokenizer has no token {missing[0]!r}, which a policy needs")
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._picture = tuple(vocab[name] for name in picture_tokens)
        self.placeholder_id: int = next(vocab[name] for name in picture_tokens if name in _PADS)
        self.end_id: int = vocab[END]
        self.banned: frozenset[int] = frozenset(banned_token_ids(tokenizer))
        self._vision = self.banned - {vocab[START]}
        self._breaks = _break_pattern([*_reserved(tokenizer), END])
        # System prompt, questions and separators come back for every episode of a group.
        self._encode = lru_cache(maxsize=TEXT_CACHE)(self._encode_uncached)

    @classmethod
    def from_policy(cls, tokenizer: Tokenizer, model_type: str) -> ChatFormat:
        """The format of a policy of this Hugging Face `model_type`. Raises ConfigError if it is not supported."""
        if model_type not in PICTURE_TOKENS:
            raise ConfigError(f"policy type {model_type!r} has no chat format; {did_you_mean(model_type, PICTURE_TOKENS)}")
        return cls(tokenizer, PICTURE_TOKENS[model_type])

    def begin(self, system: str, observation: Observation) -> list[int]:
        """The first prompt: system turn, user turn with the observation, opened assistant turn."""
        return [*self._turn("system", [], system), *self._newline(), *self._user(observation)]

    def observe(self, observation: Observation, *, closed: bool = False) -> list[int]:
        """What follows a sampled turn: its end (unless sampled: `closed`), a user turn, an opened assistant turn."""
        end = [] if closed else [self.end_id]
        return [*end, *self._newline(), *self._user(observation)]

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text: the protocol's tags keep their tokens, names of structural tokens are split into text."""
        return list(self._encode(text))

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        pieces = (piece for piece in self._breaks.split(text) if piece)
        return tuple(i for piece in pieces for i in self._tokenizer.encode(piece, add_special_tokens=False))

    def decode(self, token_ids: Iterable[int]) -> str:
        """Sampled ids as text, without a sampled end of turn."""
        ids = list(token_ids)
        if ids and ids[-1] == self.end_id:
            ids.pop()
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def without_pictures(self, token_ids: Iterable[int]) -> list[int]:
        """The ids that are no picture's, which expansion must leave as they are."""
        return [i for i in token_ids if i not in self._vision]

    def num_pictures(self, token_ids: Sequence[int]) -> int:
        """Pictures in expanded or un-expanded ids: runs of the placeholder."""
        pad = self.placeholder_id
        return sum(i == pad and (k == 0 or token_ids[k - 1] != pad) for k, i in enumerate(token_ids))

    def _user(self, observation: Observation) -> list[int]:
        return [
            *self._turn("user", observation.images, observation.text),
            *self._newline(),
            self._vocab[START],
            *self.encode_text("assistant\n"),
        ]

    def _turn(self, role: str, images: Sequence[MedImage], text: str) -> list[int]:
        """One closed turn; a placeholder and a line break per picture, then the text."""
        segments = [f"{role}\n", *["\n"] * len(images)]
        segments[-1] += text
        ids = [self._vocab[START], *self.encode_text(segments[0])]
        for segment in segments[1:]:
            ids += [*self._picture, *self.encode_text(segment)]
        return [*ids, self.end_id]

    def _newline(self) -> list[int]:
        return self.encode_text("\n")


def _break_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Matches the empty place after the first character of any of `names`, so that no piece spells one."""
    behind = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
    return re.compile(behind)
