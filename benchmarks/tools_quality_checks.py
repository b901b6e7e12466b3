"""One function a tool: truth that the tool did not make, the tool's own answer, and the figure between them.

Truth: experts' masks (pyradiomics), manual nuclei (stardist), reference radiomics values, words that were burned in,
DICOM frames read by eye, subjects' kinds, synonyms of HPO. Called by `tools_quality`.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.tools_quality_pictures import Album
from medvista_ray.assets import asset_dir
from medvista_ray.assets.knowledge import documents
from medvista_ray.assets.volumes import open_plate, open_volume
from medvista_ray.errors import ToolArgumentError
from medvista_ray.tasks.bench.drawing import draw_view, jitter
from medvista_ray.tasks.bench.pictures import box_of, plate, render
from medvista_ray.tasks.bench.subjects import SUBJECTS, Subject
from medvista_ray.tools.base import BackendChoice, Tool, ToolContext, ToolOptions
from medvista_ray.tools.catalog import load_tools
from medvista_ray.tools.knowledge.case_bank import CaseBank, open_bank
from medvista_ray.tools.parse.classify import KernelModel
from medvista_ray.types import Mask, MedImage, Split, ToolResult

SIGMA = 0.03
"""Jitter of a box's edges, as a share of its sides."""
FRAME_WORDS = {
    "us-a": "BAPTIST MED CTR 630P630 78F78 44CG43 IM#2 3cm3cm 8M12L MSCSKEL CINE 0118 22G22 78DR78 +2:09:04 LYMPH NODE "
    "TIS<0.4 MI=0.8 AO=100%",
    "us-d": "PHILIPS OB 11-05-25-142825 Philips Healthcare MI 1.1 TIB 0.2 5/25/2011 2:56:22 PM Gen OB C5-1 28Hz 11cm 2D HGen "
    "Gn 60 C 61 3/3/4 + Cist Mag 1.06 cm",
}
"""What a person reads on two real ultrasound screens."""
WORDS = ("L", "R", "A", "P", "PORTABLE", "SUPINE", "WW 400 WL 40", "IM 12/88", "12.5 cm", "Ao Diam 3.3 cm", "ERECT PA", "1.06 cm")


def ready(name: str) -> Tool:
    """A loaded tool."""
    (spec,) = load_tools([name])
    tool = spec(ToolOptions())
    tool.setup()
    return tool


def call(tool: Tool, image: MedImage | None = None, mask: Mask | None = None, **arguments: Any) -> ToolResult:
    """One call on one picture."""
    context = ToolContext({0: image} if image else {}, {0: mask} if mask else {})
    return tool.run(tool.Args.model_validate(arguments), context)


def _tumours() -> Iterator[tuple[str, MedImage, Any]]:
    """(name, picture, expert mask) of each slice of a lung or brain tumour with 60 pixels or more."""
    for name in ("lung1", "lung2", "brain1", "brain2"):
        scan = open_volume(name)
        assert scan.labels is not None
        window = (-1000.0, 400.0) if name.startswith("lung") else None
        for index in np.flatnonzero((np.asarray(scan.labels) > 0).sum(axis=(1, 2)) >= 60):
            pixels = np.ascontiguousarray(scan.values[index])
            yield (
                name,
                MedImage(pixels, scan.modality, scan.spacing_mm[1:], scan.unit, window),
                np.asarray(scan.labels[index]) > 0,
            )


def segment_medical(album: Album) -> dict[str, Any]:
    """Dice from jittered boxes of every tumour slice, and of nuclei in close-ups."""
    tool, rng = ready("segment_medical"), np.random.default_rng(0)
    scores: dict[str, list[float]] = {}
    for name, image, true in _tumours():
        found = call(tool, image, bbox=jitter(rng, box_of(true), SIGMA)).masks[0].pixels
        scores.setdefault(name, []).append(_dice(found, true))
        album.add(scores[name][-1], name, image, found, true)
    nuclei: list[float] = []
    for image, true in _nuclei(rng, 40):
        found = call(tool, image, bbox=jitter(rng, box_of(true), SIGMA)).masks[0].pixels
        nuclei.append(_dice(found, true))
        album.add(nuclei[-1], "nucleus", image, found, true)
    figures = {f"dice_{name}": round(float(np.median(values)), 3) for name, values in scores.items()}
    tumours = [value for values in scores.values() for value in values]
    figures |= {"dice_tumour": round(float(np.median(tumours)), 3), "dice_nuclei": round(float(np.median(nuclei)), 3)}
    return figures | {"num_tumour_slices": len(tumours), "num_nuclei": len(nuclei), "pictures": album.write()}


def _nuclei(rng: np.random.Generator, number: int) -> Iterator[tuple[MedImage, Any]]:
    """Close-ups (96 pixels) of nuclei that a person outlined."""
    field = open_plate("nuclei2d")
    labels = np.asarray(field.labels)
    values = [v for v in np.unique(labels)[1:] if (labels == v).sum() >= 80]
    for value in rng.permutation(values)[:number]:
        rows, cols = np.nonzero(labels == value)
        top, left = (int(np.clip(axis.mean() - 48, 0, labels.shape[0] - 96)) for axis in (rows, cols))
        crop = np.s_[top : top + 96, left : left + 96]
        yield MedImage(np.ascontiguousarray(field.pixels[crop]), "microscopy"), labels[crop] == value


def measure(album: Album) -> dict[str, Any]:
    """Against pyradiomics' reference values: the largest cut of each tumour, measured from the expert's mask."""
    del album
    tool, errors = ready("measure"), dict[str, float]()
    for name in ("lung1", "lung2", "brain1", "brain2", "breast1"):
        scan = open_volume(name)
        label = np.asarray(scan.labels) > 0
        parts = [
            call(
                tool,
                MedImage(np.asarray(scan.values[i]), scan.modality, scan.spacing_mm[1:], scan.unit),
                Mask(0, label[i]),
                mask_index=0,
            )
            for i in np.flatnonzero(label.any(axis=(1, 2)))
        ]
        pixels = np.array([part.data["num_pixels"] for part in parts])
        mean = float(np.sum([part.data["mean"] for part in parts] * pixels) / pixels.sum())
        volume = float(np.sum([part.data["area"] for part in parts]) * scan.spacing_mm[0])
        diameter = max(part.data["long_axis"] for part in parts)
        values = {"firstorder_Mean": mean, "shape_VoxelVolume": volume, "shape_Maximum2DDiameterSlice": diameter}
        for key, value in ((f"original_{key}", value) for key, value in values.items()):
            reference = _reference(key, name)
            if reference is not None:
                errors[f"{name}.{key.split('_')[-1]}"] = round(abs(value - reference) / abs(reference), 5)
    diameters = {key: errors.pop(key) for key in list(errors) if "Diameter" in key}
    return {"max_relative_error": max(errors.values()), "errors": errors, "diameter_errors": diameters}


def _reference(feature: str, case: str) -> float | None:
    """The packages' own value of a feature, or None where it has none."""
    for path in sorted(asset_dir("pyradiomics").rglob(f"baseline_{feature.split('_')[1]}.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["featureName"] == feature and row.get(case):
                    return float(row[case])
    return None


def read_text(album: Album) -> dict[str, Any]:
    """Words burned into real pictures (region given, as a policy would), and two real screens read whole."""
    tool, rng = ready("read_text"), np.random.default_rng(1)
    right = total = 0
    for number in range(36):
        word, subject = WORDS[number % len(WORDS)], _grey_plates()[number % len(_grey_plates())]
        image, box = _with_word(rng, subject, word)
        lines = call(tool, image, region=box).data["lines"]
        found = " ".join(line["text"] for line in lines)
        same = _same_characters(found, word)
        right, total = right + same, total + len(word.replace(" ", ""))
        album.add(same / len(word.replace(" ", "")), f"{word!r} read {found!r}", image)
    screens = {name: _screen(tool, name, album) for name in FRAME_WORDS}
    return {"char_accuracy": round(right / total, 4), "num_characters": total, "screens": screens, "pictures": album.write()}


def _grey_plates() -> list[Subject]:
    return [s for s in SUBJECTS if not s.is_volume and s.modality in ("CT", "MRI", "X-ray")]


def _with_word(rng: np.random.Generator, subject: Subject, word: str) -> tuple[MedImage, tuple[int, int, int, int]]:
    """A view with the word burned in (capitals 2 to 4 % of the side, 10 pixels at least), and a loose box around it."""
    view = draw_view(rng, subject)
    side = view["crop"][2]
    height = max(10, int(side * rng.uniform(0.02, 0.04)))
    wide = height * (len(word) + 2)
    row, col = int(rng.integers(0.05 * side, 0.9 * side)), int(rng.integers(0, max(1, side - wide)))
    image = render(view | {"text": [{"word": word, "at": [row, col], "height": height}]})
    edges = (col - 2 * height, row - 2 * height, col + wide + height, row + 4 * height)
    x0, y0, x1, y1 = (int(np.clip(1000 * edge / side, 0, 1000)) for edge in edges)
    return image, (x0, y0, x1, y1)


def _screen(tool: Tool, name: str, album: Album) -> float:
    """Share of the characters a person reads on the screen that the tool reads, word by word."""
    image = MedImage(plate(name).pixels, "")
    words = [word for line in call(tool, image).data["lines"] for word in line["text"].split()]
    true = FRAME_WORDS[name].split()
    right = sum(max((_same_characters(word, wanted) for word in words), default=0) for wanted in true)
    share = round(right / sum(map(len, true)), 4)
    album.add(share, f"{name}, whole screen", image)
    return share


def _same_characters(found: str, wanted: str) -> int:
    """Characters of `wanted` that `found` has in order; spaces do not count, and each character too many costs one."""
    a, b = found.replace(" ", ""), wanted.replace(" ", "")
    matched = sum(block.size for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    return max(0, matched - max(0, len(a) - len(b)))


def _views(split: Split | None, number: int) -> Iterator[tuple[Subject, MedImage]]:
    """Views of every subject that is not of the train split."""
    for subject in SUBJECTS:
        if subject.split != Split.TRAIN and split in (None, subject.split):
            rng = np.random.default_rng([3, *subject.id.encode()])
            yield from ((subject, render(draw_view(rng, subject))) for _ in range(number))


def classify(album: Album) -> dict[str, Any]:
    """Share of right kinds over views of subjects that the model was not fitted on, each subject weighing the same."""
    tool, scores = ready("classify"), dict[str, list[bool]]()
    for subject, image in _views(None, 16):
        ranked = call(tool, image).data["ranked"]
        scores.setdefault(subject.id, []).append(ranked[0]["label"] == subject.modality)
        share = next(item["prob"] for item in ranked if item["label"] == subject.modality)
        album.add(share, f"{subject.modality} said {ranked[0]['label']}", image)
    by_subject = {name: round(float(np.mean(right)), 3) for name, right in scores.items()}
    tested = [by_subject[s.id] for s in SUBJECTS if s.split == Split.TEST]
    return {
        "modality_accuracy": round(float(np.mean(list(by_subject.values()))), 4),
        "modality_accuracy_test_split": round(float(np.mean(tested)), 4),
        "modality_accuracy_left_out": _left_out(),
        "by_subject": by_subject,
        "pictures": album.write(),
    }


def _left_out() -> float:
    model = KernelModel(BackendChoice(name="kernel"), ToolOptions())
    return left_out_accuracy(model, open_bank(model.encoder.name, model.encoder.fresh))


def left_out_accuracy(model: KernelModel, bank: CaseBank) -> float:
    """Share of right kinds over the bank's pictures of each subject when `model` is fitted without it, each subject weighing
    the same; subjects that alone are of their kind are passed over. `model` is fitted anew."""
    owners, kinds = [np.array([getattr(case, name) for case in bank.cases]) for name in ("subject", "modality")]
    shares: list[float] = []
    for subject in sorted(set(owners)):
        out = owners == subject
        if not set(kinds[out]) <= set(kinds[~out]):
            continue
        rest = tuple(case for case, is_out in zip(bank.cases, out, strict=True) if not is_out)
        model.fit(CaseBank(rest, bank.features_ND[~out]))
        found = np.array(model.labels)[model.scores(bank.features_ND[out]).argmax(axis=1)]
        shares.append(float((found == kinds[out]).mean()))
    return round(float(np.mean(shares)), 4)


def detect_findings(album: Album) -> dict[str, Any]:
    """Nuclei counted against the labels, and whether pictures of kinds without a detector are told as such."""
    tool, errors = ready("detect_findings"), dict[str, float]()
    for name in ("nuclei2d", "hgsc-nest"):
        field = open_plate(name)
        true = len(np.unique(np.asarray(field.labels))) - 1
        found = call(tool, MedImage(field.pixels, "")).data["findings"]
        count = found[0]["value"] if found else 0
        errors[name] = round(abs(count - true) / true, 3)
        album.add(1 - errors[name], f"{name}: {count:.0f} found of {true}", MedImage(field.pixels, ""))
    other = [call(tool, image).data["in_domain"] for s, image in _views(None, 8) if s.modality in ("MRI", "X-ray", "ultrasound")]
    refused = round(1.0 - float(np.mean(other)), 3)
    return {"nuclei_count_error": errors, "out_of_domain_refused": refused, "pictures": album.write()}


def _synonyms(number: int) -> list[tuple[str, str]]:
    """(synonym, id) of sampled HPO concepts; a synonym that two concepts share is left out."""
    pairs = [
        (name, d.id)
        for d in documents(["HPO"])
        if "Also: " in d.text
        for name in d.text.split("Also: ")[1].rstrip(".").split("; ")
    ]
    names = [name.casefold() for name, _ in pairs]
    shared = _repeated(names)
    kept = [pair for pair in pairs if pair[0].casefold() not in shared]
    return [kept[int(i)] for i in np.random.default_rng(4).choice(len(kept), number, replace=False)]


def _repeated(names: list[str]) -> set[str]:
    seen, twice = set[str](), set[str]()
    for name in names:
        (twice if name in seen else seen).add(name)
    return twice


def search_text(album: Album) -> dict[str, Any]:
    """Is the concept among the first five for one of its synonyms?"""
    del album
    tool, pairs = ready("search_text"), _synonyms(500)
    ranks = [[hit["id"] for hit in call(tool, query=name, k=5).data["hits"]] for name, _ in pairs]
    top5 = float(np.mean([wanted in found for found, (_, wanted) in zip(ranks, pairs, strict=True)]))
    top1 = float(np.mean([found[:1] == [wanted] for found, (_, wanted) in zip(ranks, pairs, strict=True)]))
    return {"top5": round(top5, 4), "top1": round(top1, 4), "num_concepts": len(pairs)}


def lookup_concept(album: Album) -> dict[str, Any]:
    """Is the concept found by one of its synonyms?"""
    del album
    tool, pairs = ready("lookup_concept"), _synonyms(500)
    right = 0
    for name, wanted in pairs:
        try:
            right += call(tool, entity=name).data["id"] == wanted
        except ToolArgumentError:  # a synonym that two ontologies share is refused, with both: not found
            continue
    return {"found_by_synonym": round(right / len(pairs), 4), "num_concepts": len(pairs)}


def similar_cases(album: Album) -> dict[str, Any]:
    """Share of returned cases of the query's own kind, for subjects that are not in the bank."""
    tool, first, of_three = ready("similar_cases"), list[bool](), list[float]()
    for subject, image in _views(None, 8):
        kinds = [case["modality"] == subject.modality for case in call(tool, image).data["cases"]]
        first.append(kinds[0])
        of_three.append(float(np.mean(kinds)))
        album.add(of_three[-1], f"{subject.modality} {subject.id}", image)
    return {
        "precision_at_1": round(float(np.mean(first)), 4),
        "precision_at_3": round(float(np.mean(of_three)), 4),
        "pictures": album.write(),
    }


def _dice(a: Any, b: Any) -> float:
    return float(2 * (a & b).sum() / max(int(a.sum() + b.sum()), 1))
