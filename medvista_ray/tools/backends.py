"""What computes behind a tool: found by the name that the configuration gives, loaded at set-up, never from a network.

Invariant: a tool that is configured to use a backend uses that one or does not start. A backend is a class made as
`Backend(choice, options)`; third parties name theirs as "module:Class". Called by the tools' `setup`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvista_ray.errors import AssetError, ConfigError
from medvista_ray.registry import Registry
from medvista_ray.tools.base import BackendChoice, ToolOptions


def load_backend(registry: Registry, tool: str, options: ToolOptions, default: str) -> Any:
    """The backend that `options` choose for `tool`, else the one registered as `default`.

    Raises UnknownNameError for a name that is not registered, AssetError if its weights do not load.
    """
    choice = options.backends.get(tool) or BackendChoice(name=default)
    return registry.load(choice.name)(choice, options)


def weights_folder(choice: BackendChoice) -> Path:
    """Where the user's weights are. Raises ConfigError if none were named, AssetError if there is no such folder."""
    if choice.weights is None:
        raise ConfigError(f"backend {choice.name!r}: weights = None: name a folder in the transformers format")
    folder = choice.weights.expanduser()
    if not (folder / "config.json").is_file():
        raise AssetError(f"backend {choice.name!r}: weights = {str(choice.weights)!r}: no config.json there")
    return folder


@contextmanager
def loading(choice: BackendChoice) -> Generator[None]:
    """The fault boundary of model loading: what does not fit becomes an AssetError that names the folder."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        words = f"{type(error).__name__}: {error}"
        raise AssetError(f"backend {choice.name!r}: weights in {choice.weights} do not load: {words}") from error


def load_model(model_class: Any, choice: BackendChoice) -> Any:
    """The user's model of that transformers class, ready to infer on its device in float32.

    Raises AssetError if files are missing, do not fit the architecture, or leave a parameter untrained.
    """
    from medvista_ray.torchvision_shim import ensure

    ensure()
    folder = weights_folder(choice)
    with loading(choice):
        model, info = model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True, dtype="float32")
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} parameters are not in the file, first {missing[0]}")
        return model.to(choice.device).requires_grad_(False).eval()
