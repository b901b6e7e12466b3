"""Random-weight policies of every supported architecture, small enough for unit tests, and episodes for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import medvista_ray.models  # noqa: F401  (the torchvision hook comes first)
from medvista_ray.models.policy import Policy, load_policy
from medvista_ray.models.tiny_architecture import (
    TinyArchitecture,
    build_tiny_model,
    build_tiny_processor,
    save_policy_folder,
)
from medvista_ray.types import AnswerKind, Episode, EpisodeStatus, Group, Split, Task

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
]
SMALL = TinyArchitecture(
    image_side=56,
    vision_hidden=32,
    vision_layers=2,
    vision_heads=2,
    vision_intermediate=64,
    text_hidden=32,
    text_layers=2,
    text_heads=2,
    text_kv_heads=1,
    text_intermediate=64,
    max_positions=512,
)
MODEL_TYPES = ("internvl", "qwen2_5_vl", "qwen3_vl")


def byte_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Bytes and the special tokens, untrained."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def save_random_policy(model_type: str, folder: Path, head_dim: int = 16) -> Path:
    """A policy folder of `model_type` with random weights large enough that outputs differ visibly.

    `head_dim` is that of a Qwen's text model; vLLM's attention on a CPU takes none below 32.
    """
    tokenizer = byte_tokenizer()
    if model_type == "internvl":
        model = build_tiny_model(tokenizer, seed=1, shape=SMALL)
        save_policy_folder(_spread(model), build_tiny_processor(tokenizer, SMALL), folder)
        return folder
    torch.manual_seed(1)
    model = _spread(_qwen(model_type, tokenizer, head_dim))
    model.save_pretrained(folder)
    patch = 16 if model_type == "qwen3_vl" else 14
    hf.Qwen2VLImageProcessor(patch_size=patch, min_pixels=1024, max_pixels=64 * 64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_policy(model_type: str, folder: Path) -> Policy:
    """The same, loaded in fp32."""
    return load_policy(save_random_policy(model_type, folder))


def picture(seed: int, height: int = 56, width: int = 56) -> np.ndarray:
    """Noise [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def task(name: str = "task-7") -> Task:
    """A task; the learner reads its id alone."""
    return Task(
        id=name,
        source="noise",
        family="none",
        split=Split.TRAIN,
        subject="nobody",
        modality="CT",
        question="?",
        answer="yes",
        kind=AnswerKind.TEXT,
    )


def random_episode(policy: Policy, pictures: list[np.ndarray], seed: int, reward: float = 0.0) -> Episode:
    """Prompt with the first picture, then per further picture a sampled turn and an observation, then a sampled answer.

    All prompts have the same text; log-probabilities are near those of an untrained policy.
    """
    rng = np.random.default_rng(seed)
    first, *others = pictures or [None]
    ids = _text(np.random.default_rng(0), 9) + ([policy.image_token_id] if first is not None else [])
    sampled = [False] * len(ids)
    for _ in [*others, None]:
        turn = _text(rng, int(rng.integers(4, 9)))
        ids, sampled = ids + turn, sampled + [True] * len(turn)
        if _ is not None:
            reply = [policy.image_token_id, *_text(rng, 3)]
            ids, sampled = ids + reply, sampled + [False] * len(reply)
    return _expanded(policy, ids, sampled, pictures, rng, reward)


def random_group(policy: Policy, number: int, size: int = 4) -> Group:
    """Episodes that share their first picture, each with a second of its own; rewards 0, 1, 0, 1, ..."""
    first = picture(1000 + number)
    episodes = [random_episode(policy, [first, picture(100 * number + i)], 10 * number + i, float(i % 2)) for i in range(size)]
    return Group(id=number, episodes=episodes, version_admitted=0)


def _expanded(
    policy: Policy,
    ids: list[int],
    sampled: list[bool],
    pictures: list[np.ndarray],
    rng: np.random.Generator,
    reward: float,
) -> Episode:
    expanded: list[int] = []
    mask: list[bool] = []
    shown = iter(pictures)
    for token, flag in zip(ids, sampled, strict=True):
        piece = policy.expand([token], [next(shown)] if token == policy.image_token_id else [])
        expanded, mask = expanded + piece, mask + [flag] * len(piece)
    loss_mask = np.array(mask)
    noise = rng.normal(-5.5, 0.3, len(mask)).astype(np.float32)
    return Episode(
        task=task(),
        status=EpisodeStatus.ANSWERED,
        turns=[],
        answer=None,
        token_ids=np.array(expanded, dtype=np.int32),
        loss_mask=loss_mask,
        logprobs=np.where(loss_mask, noise, 0.0).astype(np.float32),
        versions=np.where(loss_mask, 3, -1).astype(np.int32),
        images=list(pictures),
        reward=reward,
    )


def _text(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(len(SPECIAL), len(SPECIAL) + 200, count).tolist()


def _spread(model: Any) -> Any:
    """Larger matrices than at initialisation, so that every input matters to the output."""
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        if weight.ndim >= 2:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.12
    return model


def _qwen(model_type: str, tokenizer: hf.PreTrainedTokenizerFast, head_dim: int) -> Any:
    vocab = tokenizer.get_vocab()
    tokens = {
        "image_token_id": vocab["<|image_pad|>"],
        "video_token_id": vocab["<|video_pad|>"],
        "vision_start_token_id": vocab["<|vision_start|>"],
        "vision_end_token_id": vocab["<|vision_end|>"],
        "tie_word_embeddings": True,
    }
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16],
    }
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 2 * head_dim,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "rope_parameters": rope,
        "tie_word_embeddings": True,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 2 * head_dim,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if model_type == "qwen2_5_vl":
        vision |= {"patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56}
        config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **tokens)
        return hf.Qwen2_5_VLForConditionalGeneration(config)
    vision |= {"patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    rope["mrope_interleaved"] = True
    return hf.Qwen3VLForConditionalGeneration(hf.Qwen3VLConfig(vision_config=vision, text_config=text, **tokens))
