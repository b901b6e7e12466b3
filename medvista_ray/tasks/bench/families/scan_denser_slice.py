"""In which of two slices of a scan is a box denser? Show both slices with `enhance`, then `compare_regions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from numpy.random import Generator

from medvista_ray.tasks.bench.comparing import cut, tell_apart, value_span
from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, pick, written
from medvista_ray.tasks.bench.pictures import shows_something
from medvista_ray.tasks.bench.scans import block, draw_scan, introduced
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

NUM_TRIES = 40
QUESTIONS = (
    "{scan} Which slice has the higher mean value in box {box}, {first} or {second}?",
    "{scan} Compare region {box} of slice {first} and of slice {second}: which slice has the higher mean?",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` decides whether the first or the second slice is the denser, and whether it is the lower."""
    subject: Subject = pick(rng, wide_subjects(split, volume=True))
    recipe = draw_scan(rng, subject)
    if not shows_something(recipe):
        return None
    values = block(recipe)
    span = value_span(values)
    denser_is_lower = index // 2 % 2 == 0
    for _ in range(NUM_TRIES):
        low, high = sorted(int(number) for number in rng.choice(len(values), 2, replace=False))
        box = draw_box(rng, int(rng.integers(80, 300)), int(rng.integers(80, 300)))
        below, above = cut(values[low], box), cut(values[high], box)
        if (below.mean() > above.mean()) == denser_is_lower and tell_apart(below, above, span):
            break
    else:
        return None
    right, wrong = (low, high) if denser_is_lower else (high, low)
    first, second = (right, wrong) if index % 2 == 0 else (wrong, right)
    question = pick(rng, QUESTIONS).format(scan=introduced(recipe), box=written(box), first=first, second=second)
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=question,
        answer=str(right),
        kind=AnswerKind.CHOICE,
        choices=(str(first), str(second)),
        chance=0.5,
        recipe=recipe,
        regions=(box,),
        plan=("enhance", "enhance", "compare_regions"),
    )


def play(hand: BenchExpert) -> Iterator[str]:
    """Show both slices, compare the box in them."""
    for choice in hand.task.choices:
        yield hand.call("enhance", image_index=0, slice_index=int(choice))
    box = list(hand.task.regions[0])
    yield hand.call("compare_regions", items=[{"image_index": 1, "bbox": box}, {"image_index": 2, "bbox": box}])
    yield hand.answer(hand.task.choices["higher)" in hand.reply])
