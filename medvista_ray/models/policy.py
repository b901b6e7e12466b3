"""A vision-language model as the rest of the code sees it: weights, tokenizer, picture preprocessing, expansion.

Owns which architectures are supported and what differs between them. Invariant: `PolicyInputs.expand` and
`PolicyInputs.pixel_inputs` give what vLLM gives for the same prompt and pictures, so that the learner trains on what
the engine saw. Remote code is never run. Called by the learner (weights) and by the scripted expert (inputs only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from medvista_ray.config import PolicyConfig
from medvista_ray.errors import ConfigError, InvariantError, UserError, did_you_mean

TINY_FOLDER = Path(__file__).parent / "tiny"
"""The policy that the package ships."""

ADAPTER_MARK = ".lora_"
"""In the name of an adapter's weight."""

Picture = NDArray[np.uint8]
"""[H, W, 3]"""


@dataclass(frozen=True)
class Family:
    """What differs between architectures."""

    vision_modules: tuple[str, ...]
    """Attributes of `model.model` that see pictures: tower and connector."""
    processor_kwargs: dict[str, Any]
    """Arguments of the picture processor, for the engine (`mm_processor_kwargs`) and the learner alike."""


FAMILIES = {
    # One tile per picture: tiles would make the number of image tokens depend on a picture's shape.
    "internvl": Family(("vision_tower", "multi_modal_projector"), {"crop_to_patches": False}),
    "qwen2_5_vl": Family(("visual",), {}),
    "qwen3_vl": Family(("visual",), {}),
}
"""By `model_type` of the Hugging Face configuration."""


@dataclass
class PolicyInputs:
    """Everything of a policy but its weights."""

    path: Path
    model_type: str
    config: Any
    tokenizer: Any
    image_processor: Any

    @property
    def family(self) -> Family:
        """The architecture's traits."""
        return FAMILIES[self.model_type]

    @property
    def image_token_id(self) -> int:
        """The placeholder: once per picture in a prompt, once per picture feature after `expand`."""
        return int(self.config.image_token_id)

    @property
    def padding_id(self) -> int:
        """A token that stands for no picture, to fill up rows."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0, 1)
        return next(int(token) for token in candidates if token is not None and token != self.image_token_id)

    def num_image_tokens(self, image: Picture) -> int:
        """Features (and so expanded placeholders) of one picture [H, W, 3]."""
        if self.model_type == "internvl":
            vision = self.config.vision_config
            rows, columns = (side // patch for side, patch in zip(vision.image_size, vision.patch_size, strict=True))
            return int(rows * self.config.downsample_ratio) * int(columns * self.config.downsample_ratio)
        patches = self.image_processor.get_number_of_image_patches(image.shape[0], image.shape[1], {})
        return int(patches) // int(self.image_processor.merge_size) ** 2

    def expand(self, token_ids: Sequence[int], images: Sequence[Picture]) -> list[int]:
        """Replace each placeholder by what the engine puts there for the picture at that place.

        Raises InvariantError if placeholders and pictures differ in number.
        """
        num_placeholders = sum(1 for token in token_ids if token == self.image_token_id)
        if num_placeholders != len(images):
            raise InvariantError(f"a prompt has {num_placeholders} placeholders for {len(images)} pictures")
        pictures = iter(images)
        expanded: list[int] = []
        for token in token_ids:
            expanded.extend(self._picture_tokens(next(pictures)) if token == self.image_token_id else [int(token)])
        return expanded

    def pixel_inputs(self, images: Sequence[Picture]) -> dict[str, torch.Tensor]:
        """Arguments of the model's `get_image_features`, in order of `images`.

        internvl: pixel_values [P, 3, S, S]. Qwen: pixel_values [all patches, values], image_grid_thw [P, 3].
        """
        arguments = {**self.family.processor_kwargs, "return_tensors": "pt"}
        outputs = self.image_processor(images=list(images), **arguments)
        return {name: outputs[name] for name in ("pixel_values", "image_grid_thw") if name in outputs}

    def _picture_tokens(self, image: Picture) -> list[int]:
        features = [self.image_token_id] * self.num_image_tokens(image)
        if self.model_type != "internvl":
            return features
        return [int(self.tokenizer.start_image_token_id), *features, int(self.tokenizer.end_image_token_id)]


@dataclass
class Policy(PolicyInputs):
    """A policy with its weights."""

    model: Any
    """A `PreTrainedModel` with `get_image_features`, `model` (the trunk) and `lm_head`."""


def resolve_policy(config: PolicyConfig) -> Path:
    """The local folder of `policy.path`: "tiny", a folder, or a Hugging Face name (downloaded to its cache).

    Raises ConfigError if there is no such thing.
    """
    folder = TINY_FOLDER if config.path == "tiny" else Path(config.path)
    if (folder / "config.json").is_file():
        return folder
    if config.path == "tiny" or folder.exists() or config.path.count("/") != 1:
        raise ConfigError(f'policy.path = {config.path!r}: {folder} has no config.json; give "tiny", a folder or a name')
    return _download(config.path)


def load_inputs(path: Path) -> PolicyInputs:
    """Tokenizer, picture processor and configuration of the folder `path`, without weights.

    Raises UserError if the architecture is not supported.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type not in FAMILIES:
        near = did_you_mean(config.model_type, FAMILIES)
        raise UserError(
            f"policy {str(path)!r} has model_type {config.model_type!r}; {near} (valid: {', '.join(sorted(FAMILIES))})"
        )
    return PolicyInputs(
        path=Path(path),
        model_type=config.model_type,
        config=config,
        tokenizer=AutoTokenizer.from_pretrained(path, trust_remote_code=False),
        image_processor=AutoImageProcessor.from_pretrained(path, trust_remote_code=False),
    )


def load_policy(path: Path, dtype: torch.dtype = torch.float32) -> Policy:
    """The whole policy, its weights converted to `dtype` whatever the file holds, in evaluation mode (no dropout).

    Raises UserError if the architecture is not supported.
    """
    inputs = load_inputs(path)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
    )
    model.eval()
    return Policy(**vars(inputs), model=model)


def trainable_parameters(policy: Policy, train_vision: bool) -> dict[str, torch.nn.Parameter]:
    """Set which weights have gradients, and return those, by their name in the model (tied weights once).

    With `train_vision` False the vision tower and the connector are frozen. Where there are adapters (`models.adapters`)
    they are trained in place of the text model's weights.
    """
    weights: dict[str, torch.nn.Parameter] = dict(policy.model.named_parameters())
    policy.model.requires_grad_(True)
    if any(ADAPTER_MARK in name for name in weights):
        seen = tuple(f"model.{name}." for name in policy.family.vision_modules)
        for name, weight in weights.items():
            weight.requires_grad_(ADAPTER_MARK in name or name.startswith(seen))
    if not train_vision:
        for name in policy.family.vision_modules:
            getattr(policy.model.model, name).requires_grad_(False)
    return {name: weight for name, weight in weights.items() if weight.requires_grad}


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.path = {name!r} is neither a folder nor a model that can be fetched: {error}") from error
