"""Stronger backends: a user's weights, here tiny random ones of the same architectures, and what is told if they do not fit.

Random weights find nothing of use, so what is tested is that inputs reach the network in its own coordinates, outputs come
back in the picture's, embeddings are made once, and mistakes are told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvista_ray.errors import AssetError, ConfigError, ToolArgumentError, UnknownNameError
from medvista_ray.tools.base import BackendChoice, ToolContext, ToolOptions
from medvista_ray.tools.localize.finding import Prompt
from medvista_ray.tools.localize.ground import Ground
from medvista_ray.tools.localize.segment_prompt import SegmentPrompt
from medvista_ray.tools.localize.segment_text import SegmentText
from medvista_ray.tools.refine.super_resolve import SuperResolve
from medvista_ray.types import MedImage


def options(tool: str, name: str, weights: Path | None) -> ToolOptions:
    return ToolOptions(backends={tool: BackendChoice(name=name, weights=weights)})


def picture(height: int = 60, width: int = 90) -> MedImage:
    pixels = np.random.default_rng(0).normal(40, 100, (height, width)).astype(np.int16)
    return MedImage(pixels, "CT", (0.8, 0.6), "HU", (-160.0, 240.0))


def saved(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[], Any]) -> Path:
    """A new folder with the model that `make` builds; its random weights are the same in each run."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(name)
    make().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    hiera = Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=32, image_size=64, mask_input_channels=4)
    decoder = Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32)
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    return saved(tmp_path_factory, "sam2", lambda: Sam2Model(config))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "left", "kidney", "mass"]
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=["stage2", "stage3", "stage4"]
        ),
        text_config=BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=12,
        max_text_len=16,
    )
    folder = saved(tmp_path_factory, "dino", lambda: GroundingDinoForObjectDetection(config))
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def swin2sr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    config = Swin2SRConfig(embed_dim=12, depths=[1], num_heads=[2], window_size=4, upscale=2, upsampler="pixelshuffledirect")
    return saved(tmp_path_factory, "swin2sr", lambda: Swin2SRForImageSuperResolution(config))


def segmenter(weights: Path) -> SegmentPrompt:
    tool = SegmentPrompt(options("segment_prompt", "sam2", weights))
    tool.setup()
    return tool


def test_sam2_answers_boxes_and_points_in_the_pictures_own_size(sam2: Path) -> None:
    tool = segmenter(sam2)
    backend: Any = tool.segmenter
    made = backend.cache.num_made
    for prompt in (Prompt(box=(100, 100, 600, 700)), Prompt(points=((300, 300), (900, 900)), labels=(1, 0))):
        mask, score = backend.segment(picture(), prompt)
        assert mask.shape == (60, 90)
        assert mask.dtype == bool
        assert 0.0 <= score <= 1.0
    assert backend.cache.num_made == made + 1
    tool.probe()


def test_sam2_agrees_with_the_network_run_by_hand(sam2: Path) -> None:
    import torch
    from transformers import Sam2Model

    backend: Any = segmenter(sam2).segmenter
    image = picture(64, 64)
    mask, score = backend.segment(image, Prompt(box=(125, 250, 625, 750)))
    network = Sam2Model.from_pretrained(sam2).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(image.display()) / 255.0 - mean) / std).permute(2, 0, 1)[None]
    with torch.inference_mode():
        output = network(pixel_values=pixels, input_boxes=torch.tensor([[[8.0, 16.0, 40.0, 48.0]]]), multimask_output=False)
    logits = torch.nn.functional.interpolate(output.pred_masks[0, 0][None], size=(64, 64), mode="bilinear")
    assert score == pytest.approx(float(output.iou_scores[0, 0, 0].clip(0, 1)), abs=2e-3)  # embeddings are kept in float16
    assert ((logits[0, 0] > 0).numpy() == mask).mean() > 0.98


def test_grounding_dino_gives_boxes_scores_and_words(dino: Path) -> None:
    tool = Ground(options("ground", "grounding_dino", dino))
    tool.setup()
    args = tool.Args.model_validate({"phrase": "Left kidney", "box_threshold": 0.0, "text_threshold": 0.0})
    data = tool.run(args, ToolContext({0: picture()}, {})).data
    assert data["num_detections"] == 12
    assert data["scores"] == sorted(data["scores"], reverse=True)
    assert set(data["phrases"]) == {"left kidney"}
    assert all(0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000 for x0, y0, x1, y1 in data["boxes"])
    strict = tool.Args.model_validate({"phrase": "left kidney", "box_threshold": 1.0})
    assert tool.run(strict, ToolContext({0: picture()}, {})).text == "no 'left kidney' found."


def test_text_is_grounded_by_one_network_and_outlined_by_another(sam2: Path, dino: Path) -> None:
    choices = {
        "ground": BackendChoice(name="grounding_dino", weights=dino),
        "segment_prompt": BackendChoice(name="sam2", weights=sam2),
    }
    tool = SegmentText(ToolOptions(backends=choices))
    tool.setup()
    result = tool.run(tool.Args.model_validate({"target": "left kidney"}), ToolContext({0: picture()}, {}))
    assert result.data["absent"] == (len(result.masks) == 0)
    assert all(mask.pixels.shape == (60, 90) for mask in result.masks)


def test_swin2sr_refines_native_values_by_its_own_factor(swin2sr: Path) -> None:
    tool = SuperResolve(options("super_resolve", "swin2sr", swin2sr))
    tool.setup()
    image = picture(30, 46)
    fine = tool.run(tool.Args.model_validate({}), ToolContext({0: image}, {})).images[0]
    assert (fine.size, fine.unit, fine.pixels.dtype, fine.spacing_mm) == ((60, 92), "HU", np.int16, (0.4, 0.3))
    assert image.pixels.min() <= fine.pixels.min() <= fine.pixels.max() <= image.pixels.max()
    colour = MedImage(np.random.default_rng(1).integers(0, 255, (20, 20, 3), dtype=np.uint8), "microscopy")
    assert tool.run(tool.Args.model_validate({}), ToolContext({0: colour}, {})).images[0].pixels.shape == (40, 40, 3)
    with pytest.raises(ToolArgumentError, match="trained for factor 2"):
        tool.run(tool.Args.model_validate({"factor": 4}), ToolContext({0: image}, {}))


def test_a_backend_that_cannot_work_is_told_at_set_up(tmp_path: Path, swin2sr: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sam2'"):
        SegmentPrompt(options("segment_prompt", "sam-2", None)).setup()
    with pytest.raises(ConfigError, match="weights = None"):
        SegmentPrompt(options("segment_prompt", "sam2", None)).setup()
    with pytest.raises(AssetError, match=r"no config\.json"):
        SegmentPrompt(options("segment_prompt", "sam2", tmp_path)).setup()
    with pytest.raises(AssetError, match="do not load"):
        SegmentPrompt(options("segment_prompt", "sam2", swin2sr)).setup()


def test_grounding_dino_answers_calls_together_as_one_by_one(dino: Path) -> None:
    tool = Ground(options("ground", "grounding_dino", dino))
    tool.setup()
    assert tool.max_batch == 1  # a CPU gains nothing by it
    same, other = picture(), picture(90, 60)
    wanted = [(same, "left kidney"), (other, "mass"), (same, "mass"), (same, "kidney mass left kidney")]
    calls = [
        (Ground.Args.model_validate({"phrase": phrase, "box_threshold": 0.0}), ToolContext({0: image}, {}))
        for image, phrase in wanted
    ]
    together, alone = tool.run_many(calls), [tool.run(*call) for call in calls]
    for a, b in zip(together, alone, strict=True):
        assert a.data["num_detections"] == b.data["num_detections"] > 0
        np.testing.assert_allclose(a.data["scores"], b.data["scores"], atol=1e-5)
        assert np.abs(np.array(a.data["boxes"]) - np.array(b.data["boxes"])).max() <= 1
