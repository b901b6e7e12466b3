"""Which side marker is burned in? A letter of about 2 % of the picture's height: too small to read without zooming in.

The marker is drawn on a real picture, as scanners and technologists do; the question gives a loose box around it.
"""

from __future__ import annotations

from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import clip_box, draw_view, loosen, pick, written
from medvista_ray.tasks.bench.pictures import glyph, plate, volume
from medvista_ray.tasks.bench.subjects import Subject, subjects
from medvista_ray.types import AnswerKind, Split

MARKERS = ("L", "R", "A", "P")
"""Left, right, anterior, posterior."""
MODALITIES = ("CT", "MRI", "X-ray", "ultrasound")
MIN_SIDE = 220
"""Pixels: smaller pictures have no room for a small but legible letter."""
QUESTIONS = (
    "Which side marker is burned in at {box}: L, R, A or P?",
    "Read the letter in box {box}. Options: L, R, A, P.",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles the letters."""
    able = [s for s in subjects(split) if s.modality in MODALITIES and _side(s) >= MIN_SIDE]
    if not able:
        return None
    subject: Subject = pick(rng, able)
    recipe = draw_view(rng, subject, side=int(_side(subject) * rng.uniform(0.85, 1.0)))
    side = recipe["crop"][2]
    height = max(6, int(side * rng.uniform(0.018, 0.028)))
    letter = MARKERS[index % len(MARKERS)]
    strokes, _ = glyph(letter, height)
    tall, wide = strokes.shape
    row, col = (int(rng.integers(0.04 * side, 0.96 * side - extent)) for extent in (tall, wide))
    recipe["text"] = [{"word": letter, "at": [row, col], "height": height}]
    gold = clip_box(tuple(1000 * v / side for v in (col, row, col + wide, row + tall)))  # pyright: ignore[reportArgumentType]
    box = loosen(rng, gold, 0.5, 1.2)
    return Draft(
        subject=subject.id,
        modality=subject.modality,
        question=pick(rng, QUESTIONS).format(box=written(box)),
        answer=letter,
        kind=AnswerKind.CHOICE,
        choices=MARKERS,
        chance=1 / len(MARKERS),
        recipe=recipe,
        regions=(gold, box),
        plan=("zoom_in",),
    )


def _side(subject: Subject) -> int:
    name = subject.plates[0]
    shape = volume(name).values.shape[1:] if subject.is_volume else plate(name).pixels.shape[:2]
    return min(shape)
