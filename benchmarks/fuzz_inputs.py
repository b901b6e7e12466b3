"""Generated inputs: turns for the parser, arguments for every tool, odd pictures, and files that are whole or broken.

Owns the hypothesis strategies. Invariant: more than half of the arguments are sound, so that tools run and do not only refuse;
the rest has a wrong key, type or range. Called by `fuzz` and by the unit tests of the parser and the tools.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from medvista_ray.protocol import TAGS, ToolCall, render_turn
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.localize.classical import FINDERS
from medvista_ray.tools.refine.enhance import Operation
from medvista_ray.types import Mask, MedImage, VolumeImage

Strategy = st.SearchStrategy[Any]


@cache
def pictures() -> dict[int, MedImage]:
    """One of each odd kind."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 65535, (40, 30), dtype=np.uint16)
    broken = rng.normal(0, 1, (20, 20))
    broken[::3], broken[1, :2] = np.nan, (np.inf, -np.inf)
    kinds = [
        MedImage(noise, "X-ray"),
        MedImage(rng.normal(0, 300, (64, 48)).astype(np.int16), "CT", (0.7, 0.7), "HU", (-160.0, 240.0)),
        MedImage(rng.integers(0, 255, (33, 65, 3), dtype=np.uint8), "microscopy"),
        MedImage(np.array([[7]], np.int16), "CT", (1.0, 1.0), "HU"),
        MedImage(np.array([[[1, 2, 3]]], np.uint8), "unknown"),
        MedImage(np.zeros((50, 50), np.float32), "MRI", unit="signal"),
        MedImage(np.full((3, 400), 1e30), "MRI", (100.0, 1e-3), "signal"),
        MedImage(rng.integers(0, 2, (400, 2)).astype(bool), "unknown"),
        MedImage(np.arange(900, dtype=np.int64).reshape(30, 30) - 2**31, "PET", (0.0, 0.0), window=(5.0, 5.0)),
        VolumeImage.of(rng.normal(0, 300, (5, 24, 20)).astype(np.int16), "CT", (50.0, 0.1, 0.1), unit="HU"),
        VolumeImage.of(rng.integers(0, 255, (3, 20, 20, 3), dtype=np.uint8), "ultrasound"),
        MedImage(broken, "MRI", (1.0, 1.0), "signal"),
        MedImage(np.full((9, 9), np.nan, np.float32), "CT", (1.0, 1.0), "HU", (-160.0, 240.0)),
    ]
    return dict(enumerate(kinds))


def huge() -> MedImage:
    """12 megapixels."""
    blocks = np.random.default_rng(0).integers(0, 200, (30, 40), dtype=np.uint8)
    return MedImage(np.kron(blocks, np.ones((100, 100), np.uint8)), "microscopy")


@cache
def context() -> ToolContext:
    """All odd pictures, a mask and an empty mask."""
    images = pictures()
    return ToolContext(images, {0: Mask(1, images[1].pixels > 0), 1: Mask(5, np.zeros((50, 50), bool))})


def picture_calls(spec: type[Tool]) -> list[dict[str, Any]]:
    """Calls of a tool on the whole of picture 0, for each of its ways to look; none of a tool that looks at no picture."""
    whole = [0, 0, 1000, 1000]
    ways: Mapping[str, list[dict[str, Any]]] = {
        "enhance": [*({"op": op} for op in Operation.__args__), {"params": {"plane": "coronal"}}],
        "compare_regions": [{"items": [{}, {}]}],
        "ground": [{"phrase": phrase, "box_threshold": 0.0, "overlay": True} for phrase in FINDERS],
        "segment_prompt": [{"bbox": whole}, {"points": [[0, 0], [1000, 1000]], "labels": [1, 0]}, {"points": [[500, 500]]}],
        "segment_text": [{"target": phrase, "overlay": True} for phrase in FINDERS],
        "super_resolve": [{}, {"factor": 4}],
    }
    fields = spec.Args.model_fields
    if spec.name in ways:
        return ways[spec.name]
    return [{"bbox": whole}, {"bbox": [499, 499, 500, 500]}] if "bbox" in fields else [{}] if "image_index" in fields else []


odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(math.nan), st.just([]), st.just({})
)
_index = st.integers(0, len(pictures()))
_edge = st.integers(0, 999_999).map(lambda both: sorted((both // 1000, both % 1000 + (both // 1000 == both % 1000))))
_box = st.tuples(_edge, _edge).map(lambda both: [both[0][0], both[1][0], both[0][1], both[1][1]])
_any_box = st.one_of(_box, st.lists(odd, max_size=5), st.lists(st.integers(-5, 1005), min_size=4, max_size=4), odd)
_phrase = st.one_of(st.sampled_from([*FINDERS, "lungs", "the brightest spot", "spleen"]), st.text(max_size=30))
_point = st.lists(st.integers(0, 1000), min_size=2, max_size=2)
_words = ("pneumonia", "fracture", "R06.02", "HP:0002090", "seizures", "renal", "of", "carcinoma in situ", "J18", "nodule")
_query = st.one_of(st.text(max_size=320), st.lists(st.sampled_from(_words), min_size=1, max_size=4).map(" ".join))
_params = st.fixed_dictionaries(
    {},
    optional={
        "low": st.floats(),
        "high": st.floats(),
        "gamma": st.floats(0.05, 11),
        "clip": st.floats(0, 1.1),
        "radius": st.integers(0, 5),
        "amount": st.floats(0, 6),
        "angle": st.sampled_from([90, 180, 270, 45]),
        "axis": st.sampled_from(["horizontal", "vertical", "z"]),
        "plane": st.sampled_from(["axial", "coronal", "sagittal", "oblique"]),
    },
)
PLAUSIBLE: Mapping[str, Strategy] = {
    "image_index": _index,
    "bbox": _any_box,
    "scale": st.floats(0.5, 17.0),
    "factor": st.sampled_from([2, 4, 3, 2.0]),
    "slice_index": st.integers(-1, 30),
    "window": st.sampled_from(["lung", "mediastinum", "bone", "brain", "liver"]),
    "op": st.sampled_from([*Operation.__args__, "melt"]),
    "params": st.one_of(_params, odd),
    "items": st.lists(
        st.fixed_dictionaries({}, optional={"image_index": _index, "bbox": _box, "label": st.text(max_size=22)}), max_size=5
    ),
    "phrase": _phrase,
    "target": _phrase,
    "box_threshold": st.floats(-0.1, 1.1),
    "text_threshold": st.floats(-0.1, 1.1),
    "overlay": st.booleans(),
    "points": st.one_of(st.lists(_point, max_size=4), odd),
    "labels": st.one_of(st.lists(st.integers(0, 1), max_size=4), odd),
    "max_masks": st.integers(0, 21),
    "mask_index": st.integers(0, 2),
    "reference_bbox": _any_box,
    "reference_mask_index": st.integers(0, 2),
    "query": _query,
    "entity": st.one_of(_query, st.sampled_from(_words)),
    "k": st.integers(-1, 12),
    "detail": st.booleans(),
    "relation": st.one_of(st.sampled_from(["definition", "parents", "cause"]), odd),
    "region": _any_box,
    "min_confidence": st.floats(-0.1, 1.1),
    "candidates": st.one_of(st.lists(st.text(max_size=20), max_size=22), odd),
    "preset": st.sampled_from(["modality", "plane", "organ", "stain", "colour"]),
}
"""By the name of the argument; a value that is wrong turns up often."""
SOUND: Mapping[str, Strategy] = {
    **PLAUSIBLE,
    **dict.fromkeys(("bbox", "reference_bbox", "region"), _box),
    "image_index": st.integers(0, len(pictures()) - 1),
    "mask_index": st.just(0),
    "reference_mask_index": st.just(0),
    "scale": st.floats(1.0, 8.0),
    "factor": st.sampled_from([2, 4]),
    "slice_index": st.integers(0, 4),
    "op": st.sampled_from(Operation.__args__),
    "params": st.just({}),
    "items": st.lists(st.fixed_dictionaries({"bbox": _box}, optional={"image_index": _index}), min_size=2, max_size=4),
    "phrase": st.sampled_from(sorted(FINDERS)),
    "target": st.sampled_from(sorted(FINDERS)),
    "box_threshold": st.floats(0.0, 1.0),
    "text_threshold": st.floats(0.0, 1.0),
    "points": st.lists(_point, min_size=2, max_size=2),
    "labels": st.sampled_from([[1, 0], [1, 1]]),
    "max_masks": st.integers(1, 20),
    "query": st.lists(st.sampled_from(_words), min_size=1, max_size=4).map(" ".join),
    "entity": st.sampled_from(_words),
    "k": st.integers(1, 5),
    "relation": st.sampled_from(["definition", "synonyms", "parents", "children"]),
    "min_confidence": st.floats(0.0, 1.0),
    "candidates": st.lists(st.sampled_from(["CT", "mr", "X-ray", "ultrasound", "histology", "PET"]), min_size=2, max_size=5),
    "preset": st.sampled_from(["modality", "plane", "organ", "stain"]),
}


def arguments(spec: type[Tool]) -> Strategy:
    """Arguments of a tool: mostly its own keys, with sound or with plausible values, at times a wrong key or value."""
    fields = spec.Args.model_fields

    def of(values: Mapping[str, Strategy], *always: str) -> Strategy:
        needed = [key for key, field in fields.items() if field.is_required() or key in always]
        return _object({key: values[key] for key in fields}, needed)

    sound = of(SOUND, "bbox").map(_one_region)
    wrong = st.one_of(st.dictionaries(st.sampled_from([*fields, "box"]), odd, max_size=4), odd)
    return _mixed(sound, sound, sound, of(PLAUSIBLE), of(PLAUSIBLE), wrong)


@st.composite
def _object(draw: st.DrawFn, values: Mapping[str, Strategy], needed: Sequence[str]) -> dict[str, Any]:
    """Values under their keys; what is not needed, every other time. One draw decides on all keys."""
    kept = draw(st.integers(0, 2 ** len(values) - 1))
    return {key: draw(value) for bit, (key, value) in enumerate(values.items()) if key in needed or kept >> bit & 1}


@st.composite
def _mixed(draw: st.DrawFn, *choices: Strategy) -> Any:
    """One of `choices`, each as often as it is named; `one_of` would merge what is named twice and spread what is a choice."""
    return draw(choices[draw(st.integers(0, len(choices) - 1))])


def _one_region(given: dict[str, Any]) -> dict[str, Any]:
    """With one way alone to name a region, and labels if these are points: what `measure` and `segment_prompt` ask for."""
    ways = [way for way in ("mask_index", "points", "phrase", "bbox") if way in given]
    left_out = {*ways[1:], *(["reference_bbox"] if "reference_mask_index" in given else []), "labels"}
    kept = {key: value for key, value in given.items() if key not in left_out}
    return kept | ({"labels": given.get("labels", [1, 0])} if "points" in kept else {})


def batches(strategy: Strategy, size: int) -> Strategy:
    """Several inputs at once: hypothesis takes ten times as long for as many examples of one input each."""
    return st.tuples(*[strategy] * size)


_scalar = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(TAGS))
_tree = st.one_of(_scalar, st.lists(_scalar, max_size=4), st.dictionaries(st.text(max_size=6), _scalar, max_size=4))
_call = st.builds(ToolCall, st.text(min_size=1, max_size=16), st.dictionaries(st.text(max_size=8), _tree, max_size=4))
_whole = st.builds(render_turn, st.text(max_size=30), st.one_of(_call, st.text(max_size=20)))
_pieces = (*TAGS, *'{}[]",:0\\', "name", "arguments", '{"name": "a", "arguments": {}}', "1e999", "NaN", " ", "\ud800", "\0", "x")


def _spoilt(turn: str, at: float, length: int, put: str) -> str:
    """`turn` with some characters replaced."""
    start = int(at * len(turn))
    return turn[:start] + put + turn[start + length :]


def _escaped(call: ToolCall) -> str:
    """A turn whose JSON has only ASCII and no "<": tags may stand in its strings."""
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}).replace("<", "\\u003c")
    return f"<think></think><tool_call>{body}</tool_call>"


turns: Strategy = _mixed(
    _whole,
    _call.map(_escaped),
    st.builds(_spoilt, _whole, st.floats(0, 1), st.integers(0, 9), st.sampled_from(["", *_pieces])),
    st.lists(st.sampled_from(_pieces), max_size=12).map("".join),
    st.text(max_size=60),
)
"""Turns for the parser: whole, spoilt in one place, made of the grammar's pieces, and any text."""


@cache
def files() -> dict[str, bytes]:
    """A small file of each kind that a user may hand in, and headers that promise a thousand times what there is."""
    from PIL import Image

    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (9, 7, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65535, (9, 7), dtype=np.uint16))
    signal = Image.fromarray(rng.normal(size=(9, 7)).astype(np.float32))
    stored = {"rgb.png": colour, "palette.png": colour.convert("P"), "grey.png": colour.convert("L"), "deep.png": deep}
    stored |= {"bits.png": colour.convert("1"), "alpha.png": colour.convert("RGBA"), "two.png": colour.convert("LA")}
    stored |= {"rgb.jpg": colour, "cmyk.jpg": colour.convert("CMYK"), "float.tiff": signal, "deep.tif": deep, "rgb.bmp": colour}
    made = {name: _saved(picture, name) for name, picture in stored.items()}
    made |= {"one.png": _saved(Image.new("L", (1, 1)), "one.png"), "bomb.png": _png_bomb()}
    return made | {"a.dcm": _dicom(9, 7), "bomb.dcm": _dicom(65000, 65000), **_scans()}


def _saved(picture: Any, name: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "tiff": "TIFF", "bmp": "BMP"}[name.rsplit(".")[-1]])
    return file.getvalue()


def _png_bomb() -> bytes:
    """100,000 x 100,000 pixels of black in 2 kB of file."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000)) + chunk(b"IEND", b"")


def _dicom(rows: int, columns: int) -> bytes:
    """A CT slice of 9 x 7 pixels that says it has `rows` x `columns`."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, UID("1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = CTImageStorage, "1.2.3", "CT"
    data.Rows, data.Columns, data.PixelSpacing = rows, columns, [0.5, 0.8]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = np.arange(63, dtype=np.uint16).tobytes() + b"\0\0"
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _scans() -> dict[str, bytes]:
    """NIfTI, packed and plain, and NRRD; one of each as a bomb."""
    import nibabel

    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    whole: bytes = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()  # pyright: ignore[reportPrivateImportUsage]
    bomb = bytearray(whole)
    bomb[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    space = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
    lines = "NRRD0004\ntype: short\ndimension: 3\nsizes: {}\nencoding: raw\nendian: little\n" + space + "\n"
    nrrd = {name: lines.format(sizes).encode() + values.tobytes() for name, sizes in (("a", "5 4 3"), ("bomb", "9999 9999 9999"))}
    made = {"a.nii": whole, "a.nii.gz": zlib.compress(whole, wbits=31), "bomb.nii": bytes(bomb)}
    return made | {f"{name}.nrrd": body for name, body in nrrd.items()}


broken_files: Strategy = st.tuples(
    st.sampled_from(sorted(files())),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
)
"""Name of a file, the share of it that is there, and bytes (place, value) that are changed."""


def broken(name: str, share: float, edits: list[tuple[float, int]]) -> bytes:
    """The bytes of such a file."""
    body = bytearray(files()[name])
    for at, value in edits:
        body[int(at * len(body))] = value
    return bytes(body[: math.ceil(share * len(body))])


def is_json(data: Any) -> bool:
    """Whether `data` can be written as JSON, without numbers that are none (a tool's data travels as such)."""
    try:
        json.dumps(data, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
