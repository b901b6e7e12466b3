"""Label maps of the few things that classical image computation finds: thresholds, components, watersheds.

Every function takes a picture [H, W] or [H, W, 3] and gives [H, W] int32, 0 where there is nothing; it raises
ToolArgumentError where the picture is none in which that thing can be computed. Called by `classical` only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.errors import ToolArgumentError
from medvista_ray.types import MedImage

Labels = NDArray[np.int32]
Binary = NDArray[np.bool_]

_MIN_SHARE = 5e-4
"""Of the picture: what is smaller is noise."""
_AIR_HU, _LUNG_HU, _BONE_HU, _CORTEX_HU = -500, -400, 250, 500
_LUNG_MEAN_HU = (-930.0, -500.0)
"""Between the gas of the bowel and partial volume."""
_LUNG_SHARE = 0.01
"""Least area of a lung, as a share of the body."""
_NOT_MICROSCOPY = ("ct", "mri", "mr", "x-ray", "ultrasound", "bone scan", "pet")


def bright(image: MedImage) -> Labels:
    """Components of the brighter part of what is bright: Otsu's threshold among the values above Otsu's threshold."""
    grey = _smooth(image)
    front = grey[grey > _otsu(grey)]
    return _components(grey > _otsu(front)) if front.size else np.zeros(image.size, np.int32)


def dark(image: MedImage) -> Labels:
    """Components below Otsu's threshold that do not touch the border (which the background does).

    If all of them do, the background is among them: then below Otsu's threshold among those values.
    """
    from skimage.segmentation import clear_border

    grey = _smooth(image)
    level = _otsu(grey)
    found = _components(clear_border(grey <= level) & (grey.max() > grey.min()))
    return found if found.any() else _components(clear_border(grey <= _otsu(grey[grey <= level])))


def body(image: MedImage) -> Labels:
    """The largest thing in front of the background: above -500 HU in CT, above half of Otsu's threshold elsewhere."""
    found = _body(image)
    if found.mean() > 0.98:  # nothing of a background is in the picture
        return np.zeros(image.size, np.int32)
    return found.astype(np.int32)


def lungs(image: MedImage) -> Labels:
    """Air-filled, not bowel gas: components within the body below -400 HU whose mean is that of lung."""
    from scipy.ndimage import binary_closing, binary_fill_holes

    values = _hounsfield(image, "lungs")
    inside = _body(image)
    labels, number = _label(inside & (values < _LUNG_HU))
    out = np.zeros(image.size, np.int32)
    count = 0
    for part in range(1, number + 1):
        mask = labels == part
        if mask.sum() < _LUNG_SHARE * inside.sum() or not _LUNG_MEAN_HU[0] < values[mask].mean() < _LUNG_MEAN_HU[1]:
            continue
        count += 1
        out[np.asarray(binary_fill_holes(binary_closing(np.pad(mask, 5), iterations=4)))[5:-5, 5:-5]] = count
    return out


def bones(image: MedImage) -> Labels:
    """Components above 250 HU that hold cortex (above 500 HU), which contrast medium in a vessel seldom reaches."""
    values = _hounsfield(image, "bone")
    labels = _components(_body(image) & (values > _BONE_HU))
    for part in range(1, int(labels.max()) + 1):
        mask = labels == part
        if np.percentile(values[mask], 95) < _CORTEX_HU:
            labels[mask] = 0
    return labels


def nuclei(image: MedImage) -> Labels:
    """Bright on dark in fluorescence, hematoxylin in stained tissue: Otsu, then a watershed on the distance map."""
    from scipy.ndimage import binary_opening, distance_transform_edt, gaussian_filter
    from skimage.feature import peak_local_max
    from skimage.morphology import remove_small_objects
    from skimage.segmentation import watershed

    if image.modality.lower() in _NOT_MICROSCOPY:
        raise ToolArgumentError(f"nuclei are seen in microscopy; this picture is {image.modality}")
    stain: NDArray[np.float32] = np.asarray(gaussian_filter(_stain(image), 1.5), dtype=np.float32)
    found: Binary = np.asarray(binary_opening(stain > _otsu(stain)), dtype=bool)
    distance: Any = gaussian_filter(np.asarray(distance_transform_edt(found), dtype=np.float32), 1.0)
    radius = float(np.percentile(distance[found], 90)) if found.any() else 0.0
    if radius < 1.5:
        return np.zeros(image.size, np.int32)
    found = remove_small_objects(found, max_size=round(radius**2))
    peaks = peak_local_max(
        distance, min_distance=max(2, round(0.7 * radius)), labels=found.astype(np.int32), exclude_border=False
    )
    seeds = np.zeros(image.size, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(watershed(-distance, seeds, mask=found), dtype=np.int32)


def text(image: MedImage) -> Labels:
    """Lines of burned-in characters: thin strokes that stand out sharply, of one height, side by side."""
    from medvista_ray.tools.localize.text_lines import text_lines

    return text_lines(image.display())


def _body(image: MedImage) -> Binary:
    from scipy.ndimage import binary_fill_holes, binary_opening

    if image.unit == "HU":
        front = image.pixels > _AIR_HU
    else:
        grey = _smooth(image)
        front = grey > 0.5 * _otsu(grey)
    labels, number = _label(binary_opening(front, iterations=2))
    if number == 0:
        return np.zeros(image.size, bool)
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(binary_fill_holes(largest))


def _hounsfield(image: MedImage, thing: str) -> NDArray[Any]:
    if image.unit != "HU":
        raise ToolArgumentError(f"{thing}: found by Hounsfield units; this picture is in {image.unit}")
    return image.pixels


def _stain(image: MedImage) -> NDArray[np.float32]:
    """What makes nuclei stand out, higher is more."""
    from skimage.color import rgb2hed

    grey = image.display().mean(axis=2)
    if image.pixels.ndim == 3 and grey.mean() > 100:  # light comes through the tissue
        return rgb2hed(image.pixels)[..., 0].astype(np.float32)
    return np.log1p(grey).astype(np.float32)


def _smooth(image: MedImage) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    grey = image.display().mean(axis=2).astype(np.float32)
    return np.asarray(gaussian_filter(grey, max(1.0, 0.004 * max(image.size))), dtype=np.float32)


def _otsu(values: NDArray[np.float32]) -> float:
    """Otsu's threshold; of a flat picture, its value."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values)) if values.max() > values.min() else float(values.max())


def _components(found: NDArray[Any]) -> Labels:
    """Numbered 8-connected components, holes kept, noise dropped."""
    labels, number = _label(found)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)
    sizes[0] = 0
    keep = sizes >= max(4.0, _MIN_SHARE * found.size)
    numbers = np.cumsum(keep) * keep
    return numbers[labels].astype(np.int32)


def _label(found: NDArray[Any]) -> tuple[Labels, int]:
    from scipy.ndimage import label

    result: Any = label(found, structure=np.ones((3, 3), np.uint8))
    return result[0], int(result[1])
