"""The shape of the tiny policy: an InternVL small enough that one CPU core trains it.

Owns every size of it and the way it is put on disk. Invariant: a saved folder is an ordinary Hugging Face folder, which
`AutoModelForImageTextToText.from_pretrained`, `AutoProcessor.from_pretrained` and vLLM load unchanged. Called by the
script that pre-trains the base weights, and by tests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from medvista_ray.errors import InvariantError

IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""Attribute that InternVL's processor reads from the tokenizer, and the token; the vocabulary must hold all four."""
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
# ChatML, for users of the processor; the rollout renders tokens itself (rollout.chat).
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyArchitecture:
    """Sizes of the tiny policy. About 7 M parameters with a vocabulary of 4,500."""

    image_side: int = 112
    """Pixels."""
    patch_side: int = 14
    """Pixels; 112 / 14 = 8, so 64 patches."""
    downsample: float = 0.5
    """Pixel shuffle per axis: 64 patches become 16 image tokens."""
    vision_hidden: int = 256
    vision_layers: int = 3
    vision_heads: int = 4
    vision_intermediate: int = 512
    text_hidden: int = 256
    text_layers: int = 5
    text_heads: int = 4
    text_kv_heads: int = 2
    text_intermediate: int = 768
    max_positions: int = 4096
    rope_theta: float = 10000.0

    @property
    def tokens_per_image(self) -> int:
        """Image tokens between <img> and </img>."""
        return int((self.image_side // self.patch_side * self.downsample) ** 2)


TINY = TinyArchitecture()
EMBEDDING_GAIN = 4.0
"""Standard deviation of the embeddings over transformers' default."""


def build_tiny_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, shape: TinyArchitecture = TINY
) -> InternVLForConditionalGeneration:
    """A randomly initialised fp32 model for `tokenizer`'s vocabulary; the same seed gives the same weights.

    Raises InvariantError if the vocabulary lacks a token the model needs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(tiny_config(tokenizer, shape)).float()
        # Tokens' identities dominate the residual stream at the start, so that copying is learned early.
        embeddings: Any = model.get_input_embeddings()
        embeddings.weight.detach().mul_(EMBEDDING_GAIN)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = token_id(tokenizer, END_OF_TURN)
    model.generation_config.pad_token_id = token_id(tokenizer, PADDING)
    return model


def tiny_config(tokenizer: PreTrainedTokenizerFast, shape: TinyArchitecture = TINY) -> InternVLConfig:
    """The configuration behind `build_tiny_model`."""
    vision: dict[str, Any] = {
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "image_size": [shape.image_side, shape.image_side],
        "patch_size": [shape.patch_side, shape.patch_side],
    }
    text: dict[str, Any] = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": shape.text_hidden,
        "intermediate_size": shape.text_intermediate,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_heads,
        "num_key_value_heads": shape.text_kv_heads,
        "max_position_embeddings": shape.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, END_OF_TURN),
        "pad_token_id": token_id(tokenizer, PADDING),
    }
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=token_id(tokenizer, IMAGE_TOKENS["context_image_token"]),
        image_seq_length=shape.tokens_per_image,
        downsample_ratio=shape.downsample,
        tie_word_embeddings=True,
    )


def build_tiny_processor(tokenizer: PreTrainedTokenizerFast, shape: TinyArchitecture = TINY) -> InternVLProcessor:
    """The processor of the tiny policy: `tokenizer` with InternVL's token attributes, and one tile per picture.

    Raises InvariantError if the vocabulary lacks a token the processor needs.
    """
    for token in IMAGE_TOKENS.values():
        token_id(tokenizer, token)
    named = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        extra_special_tokens=IMAGE_TOKENS,
        clean_up_tokenization_spaces=False,
        model_max_length=shape.max_positions,
    )
    side = {"height": shape.image_side, "width": shape.image_side}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessorPil(size=side, crop_to_patches=False),
        tokenizer=named,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=shape.tokens_per_image,
        chat_template=CHAT_TEMPLATE,
    )


def save_policy_folder(
    model: InternVLForConditionalGeneration,
    processor: InternVLProcessor,
    folder: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write weights (as `dtype`), configuration, tokenizer and processor to `folder`.

    The model given stays as it is.
    """
    path = Path(folder)
    # A tied weight is written once: vLLM and transformers take a second copy for a weight of its own.
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items() if name not in tied}
    model.save_pretrained(path, state_dict=state)
    processor.save_pretrained(path)
    return path


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a token that must be in the vocabulary as one piece. Raises InvariantError if it is not."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise InvariantError(f"the tokenizer's vocabulary lacks {token!r}")
    return found
