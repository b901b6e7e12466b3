"""A scripted engine (no model), a small real tokenizer, a picture and a task, for tests of the episode's machinery."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medvista_ray.protocol import TAGS
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.engine import Completion, Prompt, Sampling
from medvista_ray.types import AnswerKind, MedImage, Split, Task

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<image>", "<video>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
TOKENS_PER_PICTURE = 4


@cache
def small_tokenizer(tags: str = "plain") -> Any:
    """Byte-level BPE. The protocol's tags are added tokens ("plain"), special tokens ("special") or text ("absent")."""
    corpus = [f'<think> the region {i} </think>{{"name": "zoom_in", "arguments": {{"bbox": [{i}, 7]}}}}' for i in range(50)]
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    if tags != "absent":
        core.add_tokens([AddedToken(tag, special=tags == "special", normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@cache
def chat_format(model_type: str = "internvl", tags: str = "plain") -> ChatFormat:
    """The chat format of the small tokenizer."""
    return ChatFormat.from_policy(small_tokenizer(tags), model_type)


def expand(token_ids: Sequence[int], images: Sequence[Any], num_tokens: int = TOKENS_PER_PICTURE) -> list[int]:
    """InternVL's expansion: <img>, the context token repeated, </img>."""
    vocab = small_tokenizer().get_vocab()
    pad = vocab["<IMG_CONTEXT>"]
    assert list(token_ids).count(pad) == len(images)
    picture = [vocab["<img>"], *[pad] * num_tokens, vocab["</img>"]]
    return [i for token in token_ids for i in (picture if token == pad else [token])]


class ScriptedEngine:
    """Writes the given turns one after the other, cut at `max_tokens`; keeps its prompts. Version = turn number."""

    def __init__(self, turns: Sequence[str], tags: str = "plain", num_tokens: int = TOKENS_PER_PICTURE) -> None:
        self.turns = list(turns)
        self.prompts: list[Prompt] = []
        self.samplings: list[Sampling] = []
        self._chat = chat_format(tags=tags)
        self._num_tokens = num_tokens

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """The next turn. A "$" at its end samples the end-of-turn token there."""
        text = self.turns[len(self.prompts)]
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        ids = self.spell(text.removesuffix("$")) + [self._chat.end_id] * text.endswith("$")
        kept = ids[: sampling.max_tokens]
        number = len(self.prompts)
        return Completion(
            prompt_ids=expand(prompt.token_ids, prompt.images, self._num_tokens),
            token_ids=kept,
            logprobs=np.full(len(kept), -0.5 * number, np.float32),
            versions=np.full(len(kept), number, np.int32),
            text=text,
            stopped=kept == ids,
        )

    def spell(self, text: str) -> list[int]:
        """The ids that it writes `text` with."""
        return self._chat.encode_text(text)


def ramp_picture(height: int = 60, width: int = 80, seed: int = 0) -> MedImage:
    """A grey CT-like picture with 2 mm pixels."""
    pixels = np.random.default_rng(seed).integers(-100, 300, (height, width)).astype(np.int16)
    return MedImage(pixels=pixels, modality="CT", spacing_mm=(2.0, 2.0), unit="HU", window=(-100.0, 300.0))


def make_task(**fields: Any) -> Task:
    """A task with the gold answer "spleen"."""
    values: dict[str, Any] = {
        "id": "t1",
        "source": "test",
        "family": "organ",
        "split": Split.TRAIN,
        "subject": "s1",
        "modality": "CT",
        "question": "Which organ is bright?",
        "answer": "spleen",
        "kind": AnswerKind.TEXT,
        "recipe": {"seed": 1},
    }
    return Task(**{**values, **fields})
