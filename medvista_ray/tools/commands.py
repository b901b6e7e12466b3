"""What `medvista-ray tools list | show | run` show and write. Each returns the process's exit code.

Invariant: `run` runs the very tool that an episode would, on a file of the user's own, through the same checks.
Called by `cli`; errors propagate for the command line to print.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from medvista_ray.errors import ConfigError, UserError
from medvista_ray.tools.base import BackendChoice, ToolContext, ToolOptions
from medvista_ray.tools.catalog import TOOLS, load_tools
from medvista_ray.types import Mask, MedImage, ToolOutcome


def list_command(console: Console | None = None) -> int:
    """Family, name and signature of every registered tool."""
    out = console or Console()
    for line in sorted(map(_line, TOOLS.names())):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _line(name: str) -> str:
    """A tool in a line; one that does not load (a third party's) says why and hides no other."""
    try:
        (spec,) = load_tools([name])
    except UserError as error:
        return f"{'?':<10} {name}: {error}"
    return f"{spec.family:<10} {spec.signature()}"


def show_command(name: str, console: Console | None = None) -> int:
    """Signature, what its module says, and the JSON schema of the arguments."""
    (spec,) = load_tools([name])
    about = __import__(spec.__module__, fromlist=["__doc__"]).__doc__ or ""
    out = console or Console()
    for text in (spec.signature(), about.strip(), json.dumps(spec.Args.model_json_schema(), indent=2)):
        out.print(text, "", sep="\n", markup=False, highlight=False, soft_wrap=True)
    return 0


def run_command(
    name: str, images: Sequence[Path], arguments: str, out: Path, backend: str | None = None, console: Console | None = None
) -> int:
    """Run one call; result.json and the returned pictures and masks (PNG) go to `out`. 0 if the tool answered, else 1.

    `backend`: JSON of a BackendChoice. Raises ConfigError for arguments that are no JSON object, ImageError, AssetError.
    """
    from medvista_ray.assets.user_files import open_image
    from medvista_ray.tools.execution import execute

    (spec,) = load_tools([name])
    given = _object("--args", arguments)
    choice = {spec.name: _choice(backend)} if backend else {}
    context = ToolContext({index: open_image(path) for index, path in enumerate(images)}, {})
    tool = spec(ToolOptions(backends=choice))
    tool.setup()
    outcome = execute(tool, given, context)
    written = _write(outcome, context, out)
    text = outcome.result.text if outcome.result else f"{outcome.error}: {outcome.message}"
    (console or Console()).print("\n".join([text, *map(str, written)]), markup=False, highlight=False, soft_wrap=True)
    return 0 if outcome.result else 1


def _choice(text: str) -> BackendChoice:
    try:
        return BackendChoice.model_validate(_object("--backend", text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"--backend {text!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{option} {text!r}: a JSON object needed")
    return value


def _write(outcome: ToolOutcome, context: ToolContext, out: Path) -> list[Path]:
    """The files of an outcome, under `out`."""
    from PIL import Image

    result = outcome.result
    told = {"error": outcome.error, "message": outcome.message, "latency_s": round(outcome.latency_s, 3)}
    told |= {"text": result.text, "data": dict(result.data)} if result else {}
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "result.json"]
    paths[0].write_text(json.dumps(told, indent=2) + "\n")
    pictures = (
        [(f"image_{context.num_images + i}.png", image.display()) for i, image in enumerate(result.images)] if result else []
    )
    if result:
        pictures += [(f"mask_{context.num_masks + i}.png", _outlined(mask, context)) for i, mask in enumerate(result.masks)]
    for name, pixels in pictures:
        Image.fromarray(pixels).save(out / name)
        paths.append(out / name)
    return paths


def _outlined(mask: Mask, context: ToolContext) -> Any:
    """The mask's picture with the region in a clear tint."""
    image: MedImage = context.image(mask.image_index)
    shown = image.display().copy()
    shown[mask.pixels] = (shown[mask.pixels] * 0.5 + [0, 128, 0]).astype(shown.dtype)
    return shown
