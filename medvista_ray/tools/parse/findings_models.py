"""A user's multi-label networks behind `detect_findings`: any transformers image classifier, or a DenseNet of
torchxrayvision (Cohen et al., 2022; extra "xray").

Invariant: weights come from the user's disk only; a colour picture is out of a radiograph model's domain and is told so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medvista_ray.errors import AssetError, ConfigError
from medvista_ray.tools.backends import loading
from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.parse.detect_findings import Finding, Findings
from medvista_ray.tools.parse.vision_models import FindingsModel
from medvista_ray.types import MedImage

_SIDE = 224
_MAX_INTENSITY = 1024.0
"""torchxrayvision's pixels run from -1024 to 1024."""


class ClassifierDetector:
    """Sigmoid probabilities of a user's classifier."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Raises AssetError if the weights do not load."""
        self._model = FindingsModel(choice, options)

    def detect(self, image: MedImage) -> Findings:
        """Every label with its probability, likeliest first; the domain is the user's to know."""
        return Findings(_ranked(self._model.probabilities(image)), True, "domain not checked: the user's own model")


class XrayDetector:
    """A torchxrayvision DenseNet; `choice.weights` is a file with its state dict and its list of labels.

    The file is a safetensors file whose metadata has "pathologies": the labels, comma-separated.
    """

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Raises ConfigError, AssetError."""
        del options
        if choice.weights is None:
            raise ConfigError("backend 'torchxrayvision': weights = None: name a safetensors file")
        self._device = choice.device
        with loading(choice):
            self._model, self.labels = _xray_network(choice)

    def detect(self, image: MedImage) -> Findings:
        """Every label with its probability, likeliest first."""
        import torch

        display = image.display()
        if not (display[..., 0] == display[..., 1]).all():
            return Findings((), False, "a colour picture: this model knows radiographs only")
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(_radiograph(display)).to(self._device))[0]
        return Findings(_ranked(dict(zip(self.labels, torch.sigmoid(logits).tolist(), strict=True))), True)


def _xray_network(choice: BackendChoice) -> tuple[Any, list[str]]:
    from safetensors import safe_open

    from medvista_ray.torchvision_shim import ensure

    ensure()
    from torchxrayvision.models import DenseNet  # pyright: ignore[reportMissingImports] - an optional extra

    with safe_open(str(choice.weights), framework="pt") as file:
        listed = (file.metadata() or {}).get("pathologies", "")
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    if not listed:
        raise AssetError(f"{choice.weights} has no 'pathologies' in its metadata: the names of its outputs")
    labels = listed.split(",")
    network: Any = DenseNet(weights=None, num_classes=len(labels))
    network.load_state_dict(state, strict=True)
    return network.to(choice.device).eval().requires_grad_(False), labels


def _radiograph(display: Any) -> Any:
    """[1, 1, 224, 224] in -1024..1024, the middle square."""
    from PIL import Image

    height, width = display.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(display[top : top + side, left : left + side, 0]).resize((_SIDE, _SIDE))
    return ((2.0 * np.asarray(square, np.float32) / 255.0 - 1.0) * _MAX_INTENSITY)[None, None]


def _ranked(shares: dict[str, float]) -> tuple[Finding, ...]:
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return tuple(Finding(label, share, "probability") for label, share in ordered if label)
