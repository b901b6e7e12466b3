"""What a tool is, what it sees, and who may call it.

Owns `Tool`, `ToolContext`, `ToolOptions` and the `ToolClient` protocol. Invariant: a tool sees only the pictures and
masks of its own episode, never the task or its gold answer. Environments call tools through a `ToolClient`; clients
run `Tool`s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from medvista_ray.errors import ToolArgumentError
from medvista_ray.types import Mask, MedImage, ToolOutcome, ToolResult

Family = Literal["refine", "localize", "parse", "knowledge"]
Index = Annotated[int, Field(strict=True, ge=0)]
"""Index of a picture or a mask of the episode."""
_Coordinate = Annotated[int, Field(strict=True, ge=0, le=1000)]


def _ordered(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    if x0 >= x1 or y0 >= y1:
        raise PydanticCustomError("box_order", "x0 < x1 and y0 < y1 needed")
    return box


BoxArg = Annotated[
    tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate],
    AfterValidator(_ordered),
    WithJsonSchema({"type": "array", "items": {"type": "integer"}, "title": "[x0, y0, x1, y1]"}),
]
"""x0, y0, x1, y1 as integers 0..1000 in the named picture, x0 < x1, y0 < y1."""


class ToolArgs(BaseModel):
    """Base of every tool's `Args`: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackendChoice(BaseModel):
    """What computes for one tool: a backend's registered name or "module:Class", and the user's weights for it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    weights: Path | None = None
    """Folder of a model in the transformers format (config.json, model.safetensors, tokenizer files)."""
    device: str = "cpu"
    """As torch names it."""


@dataclass(frozen=True)
class ToolOptions:
    """What the host grants a tool (the same for every tool of a client or a replica)."""

    num_threads: int | None = None
    """CPU threads of a neural net, for the whole process; None leaves the process as it is."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of a neural net; None takes the fastest that the processor has in hardware."""
    embedding_cache_mib: int = 1024
    """Bound of a cache of image embeddings in memory, in MiB."""
    disk_cache_mib: int = 2048
    """Bound of a cache of image embeddings on disk, in MiB; 0 keeps nothing on disk."""
    backends: Mapping[str, BackendChoice] = field(default_factory=dict[str, BackendChoice])
    """Per tool, by its name, what computes instead of its default."""


@dataclass(frozen=True)
class ToolContext:
    """The pictures and masks of an episode that a call may use, by their episode indices."""

    images: Mapping[int, MedImage]
    masks: Mapping[int, Mask]
    num_images: int = -1
    """Pictures of the whole episode: the index that the next one gets. -1: one more than the largest key."""
    num_masks: int = -1
    """Masks of the whole episode, likewise."""

    def __post_init__(self) -> None:
        if self.num_images < 0:
            object.__setattr__(self, "num_images", max(self.images, default=-1) + 1)
        if self.num_masks < 0:
            object.__setattr__(self, "num_masks", max(self.masks, default=-1) + 1)

    def image(self, index: int) -> MedImage:
        """Picture `index`. Raises ToolArgumentError naming the valid indices."""
        if index not in self.images:
            raise ToolArgumentError(f"there is no image {index}; images: {_listed(self.images)}")
        return self.images[index]

    def mask(self, index: int) -> Mask:
        """Mask `index`. Raises ToolArgumentError naming the valid indices."""
        if index not in self.masks:
            raise ToolArgumentError(f"there is no mask {index}; masks: {_listed(self.masks)}")
        return self.masks[index]

    def needed_by(self, args: BaseModel) -> ToolContext:
        """Only what `args` names: fields ending in image_index / mask_index, also of items; a mask brings its picture.

        Raises ToolArgumentError if one of them does not exist.
        """
        masks = {i: self.mask(i) for i in _named(args, "mask_index")}
        wanted = {*_named(args, "image_index"), *(mask.image_index for mask in masks.values())}
        return replace(self, images={i: self.image(i) for i in sorted(wanted)}, masks=masks)


class Tool(ABC):
    """One tool. `run` is called from several threads at once: keep no state in it but thread-safe caches."""

    name: ClassVar[str]
    family: ClassVar[Family]
    description: ClassVar[str]
    """One short sentence for the policy."""
    Args: ClassVar[type[BaseModel]]
    """Schema of the arguments, `extra="forbid"` (see ToolArgs)."""
    num_parallel: ClassVar[int] = 1
    """Calls that run at once: more than 1 pays only for what computes or waits outside the interpreter lock."""
    max_batch: int = 1
    """Waiting calls that are computed together by `run_many`; `setup` may set it, since it depends on what computes."""

    def __init__(self, options: ToolOptions | None = None) -> None:
        self.options = options or ToolOptions()

    def setup(self) -> None:  # noqa: B027 - most tools need none
        """Load weights or an index, once, before the first call. Raises AssetError if data is absent."""

    @abstractmethod
    def run(self, args: Any, context: ToolContext) -> ToolResult:
        """Do the work. `args` is an instance of `Args`; raises ToolArgumentError if it aims at nothing."""

    def run_many(self, calls: Sequence[tuple[Any, ToolContext]]) -> list[ToolResult]:
        """`run` for several calls at once, in order, with the same results; where a device does that faster.

        Whatever it raises only means that each call is run alone.
        """
        return [self.run(args, context) for args, context in calls]

    def probe(self) -> None:  # noqa: B027 - a loaded tool is taken for healthy unless it says more
        """Exercise the tool on a small input in a few milliseconds; raise if it does not work. For health checks."""

    @classmethod
    def signature(cls) -> str:
        """One line for a system prompt: `name(key: type, key?: type, key: type = default): description`."""
        schema = cls.Args.model_json_schema()
        required = set(schema.get("required", ()))
        keys = (_render(key, spec, key in required) for key, spec in schema.get("properties", {}).items())
        return f"{cls.name}({', '.join(keys)}): {cls.description}"

    @classmethod
    def names(cls) -> str:
        """The same by names alone: `name(key, key?)`; optional keys have a question mark."""
        fields = cls.Args.model_fields.items()
        return f"{cls.name}({', '.join(key if field.is_required() else f'{key}?' for key, field in fields)})"

    @classmethod
    def required(cls) -> str:
        """Shorter still, `name(key, ...)`: the keys that must be given, and whether there are others."""
        fields = cls.Args.model_fields
        keys = [key for key, field in fields.items() if field.is_required()]
        return f"{cls.name}({', '.join(keys + ['...'] * (len(keys) < len(fields)))})"


class ToolClient(Protocol):
    """How an environment calls tools, wherever they run."""

    @property
    def specs(self) -> tuple[type[Tool], ...]:
        """The tools on offer."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """Run one call in bounded time; a policy's mistake is an outcome with an error code, never an exception.

        Raises ToolInfrastructureError if the tool could not be reached after the retries.
        """
        ...

    def close(self) -> None:
        """Take no more calls and let go of threads and connections; may take a moment."""
        ...


def _named(args: BaseModel, suffix: str) -> list[int]:
    found: list[int] = []
    for key in type(args).model_fields:
        value = getattr(args, key)
        if isinstance(value, tuple):
            found += [index for item in _models(value) for index in _named(item, suffix)]
        elif key.endswith(suffix) and value is not None:
            found.append(value)
    return found


def _models(items: Iterable[Any]) -> list[BaseModel]:
    return [item for item in items if isinstance(item, BaseModel)]


def _listed(indices: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(indices))) or "none"


def _render(key: str, spec: Mapping[str, Any], is_required: bool) -> str:
    kind = _kind(spec)
    if is_required:
        return f"{key}: {kind}"
    default = spec.get("default")
    return f"{key}?: {kind}" if default is None else f"{key}: {kind} = {default}"


def _kind(spec: Mapping[str, Any]) -> str:
    """Short name of a JSON type; a union with null is its other member."""
    if "anyOf" in spec:
        return next(_kind(option) for option in spec["anyOf"] if option.get("type") != "null")
    if spec.get("type") == "array":
        return str(spec.get("title", "list"))
    names = {"integer": "int", "number": "float", "string": "str", "boolean": "bool"}
    return names.get(str(spec.get("type")), "value")
