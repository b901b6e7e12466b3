"""Policies of real sizes with random weights: sizes from the published models' configurations, built by transformers.

Owns the sizes and what a policy needs beside weights (the shipped tiny tokenizer with the picture tokens added, a picture
processor). Invariant: nothing is downloaded; parameter counts are the published ones, which a test checks without memory.
The vocabulary has the published number of rows, of which the small tokenizer uses the first. Called by the scripts here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

import medvista_ray.models  # noqa: F401  (the torchvision hook comes before transformers' processors)
from medvista_ray.models.policy import TINY_FOLDER, Policy
from medvista_ray.models.tiny_architecture import CHAT_TEMPLATE
from medvista_ray.types import AnswerKind, Episode, EpisodeStatus, Group, Split, Task

QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one model."""

    model_type: str
    image_side: int
    """Pixels of the (square) pictures of the benchmark."""
    text: dict[str, Any]
    vision: dict[str, Any]
    num_parameters: float = 0.0
    """As published, in all; 0 for the small ones."""


def _text(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }


def _internvit(hidden: int, layers: int, heads: int, intermediate: int, side: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "image_size": [side, side],
        "patch_size": [14, 14],
        "attention_bias": True,
    }


def _qwen_vision(hidden: int, depth: int, heads: int, intermediate: int, out: int, full: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "depth": depth,
        "num_heads": heads,
        "intermediate_size": intermediate,
        "out_hidden_size": out,
        "fullatt_block_indexes": full,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
    }


SHAPES = {
    "internvl3-2b": Shape(
        model_type="internvl", image_side=448, num_parameters=2.09e9,
        text=_text(1536, 28, 12, 2, 8960, 151674), vision=_internvit(1024, 24, 16, 4096, 448),
    ),
    "internvl3-8b": Shape(
        model_type="internvl", image_side=448, num_parameters=7.94e9,
        text=_text(3584, 28, 28, 4, 18944, 151674), vision=_internvit(1024, 24, 16, 4096, 448),
    ),
    "qwen2.5-vl-7b": Shape(
        model_type="qwen2_5_vl", image_side=448, num_parameters=8.29e9,
        text=_text(3584, 28, 28, 4, 18944, 152064), vision=_qwen_vision(1280, 32, 16, 3420, 3584, [7, 15, 23, 31]),
    ),
    "small-internvl": Shape(
        model_type="internvl", image_side=56,
        text=_text(128, 2, 4, 2, 256, 4200), vision=_internvit(32, 2, 2, 64, 56),
    ),
    "small-qwen2.5-vl": Shape(
        model_type="qwen2_5_vl", image_side=56,
        text=_text(128, 2, 4, 2, 256, 4200), vision=_qwen_vision(32, 2, 2, 64, 128, [1]),
    ),
}  # fmt: skip
"""By name. The small ones are for machines without a GPU; vLLM's CPU attention knows no heads below 32."""


def build_model(shape: Shape, tokenizer: Any) -> Any:
    """The model with random weights, in torch's default dtype, on torch's default device ("meta" costs no memory)."""
    return _internvl(shape, tokenizer) if shape.model_type == "internvl" else _qwen(shape, tokenizer)


def _internvl(shape: Shape, tokenizer: Any) -> Any:
    vocabulary = tokenizer.get_vocab()
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = hf.InternVLConfig(
        vision_config=shape.vision,
        text_config={"model_type": "qwen2", "rope_parameters": rope, **shape.text},
        image_token_id=vocabulary["<IMG_CONTEXT>"],
        image_seq_length=(shape.image_side // 28) ** 2,
        downsample_ratio=0.5,
        tie_word_embeddings=shape.text["tie_word_embeddings"],
    )
    return hf.InternVLForConditionalGeneration(config)


def _qwen(shape: Shape, tokenizer: Any) -> Any:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    tokens = dict(zip(names, map(tokenizer.get_vocab().get, QWEN_TOKENS), strict=True))
    half = shape.text["hidden_size"] // shape.text["num_attention_heads"] // 2
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]  # 16, 24, 24 of a head of 128
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = hf.Qwen2_5_VLConfig(
        vision_config=shape.vision,
        text_config={"rope_parameters": rope, **shape.text},
        tie_word_embeddings=shape.text["tie_word_embeddings"],
        **tokens,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def build_policy(name: str, device: str, dtype: torch.dtype, folder: Path) -> Policy:
    """The policy on `device`; tokenizer and processor are written to `folder`, weights are not (see `save_weights`)."""
    shape = SHAPES[name]
    tokenizer = hf.AutoTokenizer.from_pretrained(TINY_FOLDER)
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_TOKENS)}, replace_extra_special_tokens=False)
    processor = _processor(shape, tokenizer)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build_model(shape, tokenizer)
    finally:
        torch.set_default_dtype(before)
    for part in (processor, model.config):
        part.save_pretrained(folder)
    return Policy(
        path=folder,
        model_type=shape.model_type,
        config=model.config,
        tokenizer=hf.AutoTokenizer.from_pretrained(folder),
        image_processor=processor.image_processor,
        model=model.eval(),
    )


def _processor(shape: Shape, tokenizer: Any) -> Any:
    """What turns pictures into the model's inputs, for the learner and, from its folder, for an engine."""
    if shape.model_type == "internvl":
        side = {"height": shape.image_side, "width": shape.image_side}
        return hf.InternVLProcessor(
            image_processor=hf.GotOcr2ImageProcessorPil(size=side, crop_to_patches=False),
            tokenizer=tokenizer,
            video_processor=hf.InternVLVideoProcessor(size=side),
            image_seq_length=(shape.image_side // 28) ** 2,
            chat_template=CHAT_TEMPLATE,
        )
    return hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=14, min_pixels=28 * 28, max_pixels=shape.image_side**2),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def save_weights(policy: Policy) -> Path:
    """Write the weights beside the rest, for an engine."""
    policy.model.save_pretrained(policy.path)
    return policy.path


def random_groups(
    policy: Policy, side: int, num_groups: int, group_size: int, num_text: int, num_sampled: int, seed: int = 0
) -> list[Group]:
    """Groups of episodes of two turns: question with a picture, call, a picture of its own, answer.

    `num_text` tokens of question and reply, `num_sampled` in both turns; rewards alternate, so that all are trained.
    """
    rng = np.random.default_rng(seed)
    groups: list[Group] = []
    for number in range(num_groups):
        first, question = _picture(rng, side), _words(rng, num_text // 2)
        episodes = [
            _episode(policy, rng, question, first, _picture(rng, side), num_text // 2, num_sampled // 2, float(i % 2))
            for i in range(group_size)
        ]
        groups.append(Group(id=number, episodes=episodes, version_admitted=0))
    return groups


def _episode(
    policy: Policy, rng: np.random.Generator, question: list[int], first: Any, second: Any, num_reply: int, num_turn: int,
    reward: float,
) -> Episode:  # fmt: skip
    pad = policy.image_token_id
    prompt = policy.expand([pad, *question], [first])
    reply = policy.expand([pad, *_words(rng, num_reply)], [second])
    pieces = [(prompt, False), (_words(rng, num_turn), True), (reply, False), (_words(rng, num_turn), True)]
    ids = np.array([token for piece, _ in pieces for token in piece], np.int32)
    mask = np.array([sampled for piece, sampled in pieces for _ in piece])
    task = Task(
        id=f"random-{question[:4]}", source="random", family="random", split=Split.TRAIN, subject="nobody", modality="CT",
        question="?", answer="yes", kind=AnswerKind.TEXT,
    )  # fmt: skip
    guess = -float(np.log(policy.config.get_text_config().vocab_size))  # what random weights give, nearly
    return Episode(
        task=task, status=EpisodeStatus.ANSWERED, turns=[], answer=None, token_ids=ids, loss_mask=mask,
        logprobs=np.where(mask, guess, 0.0).astype(np.float32), versions=np.where(mask, 1, -1).astype(np.int32),
        images=[first, second], reward=reward,
    )  # fmt: skip


def _picture(rng: np.random.Generator, side: int) -> Any:
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def _words(rng: np.random.Generator, number: int) -> list[int]:
    """Ids of ordinary text in the tiny tokenizer."""
    return rng.integers(300, 3000, number).tolist()
