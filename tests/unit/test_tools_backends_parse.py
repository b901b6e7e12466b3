"""The stronger backends of classify, similar_cases and detect_findings, on tiny networks with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.errors import AssetError, ConfigError, UnknownNameError
from medvista_ray.tools.base import BackendChoice, Tool, ToolContext, ToolOptions
from medvista_ray.tools.parse.classify import Classify
from medvista_ray.tools.parse.detect_findings import DetectFindings
from medvista_ray.types import MedImage, ToolResult

PICTURE = MedImage(pixels=np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8), modality="")


def call(tool: Tool, image: MedImage = PICTURE, **arguments: object) -> ToolResult:
    return tool.run(tool.Args.model_validate(arguments), ToolContext({0: image}, {}))


def tool_with(kind: type[Tool], **choice: object) -> Tool:
    tool = kind(ToolOptions(backends={kind.name: BackendChoice.model_validate(choice)}))
    tool.setup()
    return tool


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few thousand parameters, with its processor, as transformers saves it."""
    import torch

    from medvista_ray.torchvision_shim import ensure

    ensure()
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = shape | {"vocab_size": len(words), "max_position_embeddings": 64} | ends
    config = CLIPConfig(text_config=text, vision_config=shape | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def test_a_clip_ranks_any_words_and_depends_on_the_picture(clip_folder: Path) -> None:
    tool = tool_with(Classify, name="clip", weights=clip_folder)
    first = call(tool, candidates=["axial", "coronal", "a kidney"]).data["ranked"]
    assert sum(item["prob"] for item in first) == pytest.approx(1.0, abs=0.01)
    dark = call(tool, MedImage(pixels=np.zeros((40, 50), np.uint8), modality=""), candidates=["axial", "coronal", "a kidney"])
    assert dark.data["ranked"] != first
    tool.probe()


def test_a_folder_without_words_is_no_clip(findings_folder: Path) -> None:
    with pytest.raises(AssetError, match="backend 'clip'"):
        tool_with(Classify, name="clip", weights=findings_folder)


@pytest.fixture(scope="module")
def findings_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer with two findings."""
    from medvista_ray.torchvision_shim import ensure

    ensure()
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    labels = {0: "effusion", 1: "nodule"}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=32, patch_size=16, id2label=labels, label2id={v: k for k, v in labels.items()}, **shape)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_users_classifier_gives_a_probability_for_each_finding(findings_folder: Path) -> None:
    result = call(tool_with(DetectFindings, name="transformers", weights=findings_folder))
    found = {item["finding"]: item["value"] for item in result.data["findings"]}
    assert set(found) == {"effusion", "nodule"}
    assert all(0.0 < value < 1.0 for value in found.values())
    assert "domain not checked" in result.text


def test_an_xray_network_of_torchxrayvision_loads(tmp_path: Path) -> None:
    pytest.importorskip("torchxrayvision")
    from safetensors.torch import save_file
    from torchxrayvision.models import DenseNet

    network = DenseNet(weights=None, num_classes=2)
    save_file(dict(network.state_dict()), tmp_path / "x.safetensors", {"pathologies": "Effusion,Nodule"})
    tool = tool_with(DetectFindings, name="torchxrayvision", weights=tmp_path / "x.safetensors")
    grey = MedImage(pixels=np.arange(2500, dtype=np.uint16).reshape(50, 50), modality="")
    assert {item["finding"] for item in call(tool, grey).data["findings"]} == {"Effusion", "Nodule"}
    assert call(tool).data["in_domain"] is False


@pytest.mark.parametrize(
    ("kind", "choice", "error", "words"),
    [
        (Classify, {"name": "clipp"}, UnknownNameError, "did you mean 'clip'"),
        (Classify, {"name": "clip"}, ConfigError, "weights = None"),
        (DetectFindings, {"name": "transformers", "weights": "/nowhere"}, AssetError, "no config.json there"),
        (DetectFindings, {"name": "torchxrayvision"}, ConfigError, "name a safetensors file"),
    ],
)
def test_a_wrong_choice_is_told(kind: type[Tool], choice: dict[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tool_with(kind, **choice)
