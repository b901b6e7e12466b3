"""What the tiny policy's base is taught: to see, to read and to copy. Never a tool call.

Owns the mixture of image-text pairs, direct answers, reading and copying, made from TRAIN subjects and train concepts
only. Invariant: no sample holds a tool's name, a tool_call tag or a system prompt with tools, so that a run starts from a
base that was never taught tools. Called by `trainers.pretrain_tiny`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator

from medvista_ray.assets.knowledge import Document
from medvista_ray.config import BenchConfig
from medvista_ray.tasks.bench.drawing import draw_box, draw_view, loosen, pick, written
from medvista_ray.tasks.bench.families import box_measure, lesion_size
from medvista_ray.tasks.bench.families.concept_code import QUESTIONS, SYSTEMS, terms
from medvista_ray.tasks.bench.pictures import render
from medvista_ray.tasks.bench.source import MedVistaBench
from medvista_ray.tasks.bench.subjects import subjects
from medvista_ray.types import Box, MedImage, Split, Task

PRETRAIN_SEED = 7_000
"""Seed of the bench that pre-training draws from: other questions than any run asks."""


@dataclass(frozen=True)
class Sample:
    """One question, the pictures that come with it, and what the base shall say."""

    question: str
    answer: str
    images: tuple[MedImage, ...] = ()
    think: str = "I look."
    kind: str = ""
    exchanges: tuple[tuple[str, str], ...] = ()
    """What was answered too early and what the user then added, in order; none: one turn."""
    system: str = ""
    """What the system turn says after the instruction."""


COPY_KINDS = {"copy_box": 1.0}
TEXT_KINDS = {"copy_box": 0.10, "copy": 0.30, "read_numbers": 0.32, "read_list": 0.18, "compare": 0.10}
VISION_KINDS = {"letter": 0.45, "nucleus": 0.30, "modality": 0.15, "brightness": 0.10}
JOINT_KINDS = {
    "letter": 0.22,
    "nucleus": 0.16,
    "modality": 0.08,
    "brightness": 0.04,
    "direct": 0.14,
    "copy": 0.12,
    "read_numbers": 0.12,
    "read_list": 0.08,
    "compare": 0.04,
}
READING_KINDS = {
    "numbers_later": 0.34,
    "list_later": 0.16,
    "copy_terms": 0.14,
    "copy": 0.10,
    "read_list": 0.06,
    "letter": 0.06,
    "nucleus": 0.05,
    "modality": 0.03,
    "direct": 0.06,
}
"""Last stage: what comes after the question is read, terms and codes are copied; enough of the rest to keep it."""
STAGES = {"vision": VISION_KINDS, "copy": COPY_KINDS, "text": TEXT_KINDS, "joint": JOINT_KINDS, "reading": READING_KINDS}
"""Stage of the pre-training -> share of each kind of sample."""


ASKED_LATER = {
    name: (f"What is the {name}?", f"What is the {name} in {{box}}?", f"Give the {name} of region {{box}}.", *asked)
    for name, asked in {
        **box_measure.QUESTIONS,
        "long axis": lesion_size.QUESTIONS,
        "short axis": (),
        "area": ("How large is region {box}?",),
    }.items()
}
"""Name of a number -> questions for it that come before it is known."""
THOUGHTS = ("I read.", "I look.", "I see.", "Now I know.", "I have it.", "There it is.", "That is it.", "I can tell.")


class PretrainMixture:
    """An endless, seeded stream of samples."""

    def __init__(self, seed: int, kinds: Mapping[str, float] = JOINT_KINDS) -> None:
        self._rng = np.random.default_rng([PRETRAIN_SEED, seed])
        self._bench = MedVistaBench(BenchConfig(seed=PRETRAIN_SEED))
        self._shares = kinds
        self._makers: dict[str, Callable[[Generator], Sample | None]] = {
            "direct": self._direct,
            "letter": self._letter,
            "nucleus": self._nucleus,
            "modality": self._modality,
            "brightness": _brightness,
            "copy_box": _copy_box,
            "copy": _copy,
            "read_numbers": _read_numbers,
            "read_list": _read_list,
            "compare": _compare,
            "copy_terms": _copy_terms,
            "numbers_later": self._numbers_later,
            "list_later": self._list_later,
        }

    def __iter__(self) -> Iterator[Sample]:
        names, shares = list(self._shares), np.array(list(self._shares.values()))
        while True:
            kind = names[int(self._rng.choice(len(names), p=shares / shares.sum()))]
            sample = self._makers[kind](self._rng)
            if sample is not None:
                yield replace(sample, kind=kind)

    def _task(self, rng: Generator, family: str) -> Task:
        task = self._bench.make(family, Split.TRAIN, int(rng.integers(1_000_000)))
        assert task is not None
        return task

    def _direct(self, rng: Generator) -> Sample:
        """A bench question on a train subject, answered without any tool: honest training of the no-tools arm."""
        task = self._task(rng, pick(rng, self._bench.families))
        return Sample(task.question, task.answer, tuple(self._bench.open(task)))

    def _modality(self, rng: Generator) -> Sample:
        """What kind of picture it is."""
        task = self._task(rng, "modality")
        return Sample(task.question, task.answer, tuple(self._bench.open(task)))

    def _letter(self, rng: Generator) -> Sample:
        """Read a marker that fills a good part of the picture, alone or as the second of two pictures."""
        task = self._task(rng, "side_marker")
        image = self._bench.open(task)[0]
        close = crop(image, loosen(rng, task.regions[0], 0.35, 1.25))
        return self._close_up(rng, task, image, close, "Which letter is shown: L, R, A or P?")

    def _nucleus(self, rng: Generator) -> Sample:
        """Say whether a nucleus is in the middle of a close-up."""
        task = self._task(rng, "nucleus_present")
        image = self._bench.open(task)[0]
        close = crop(image, loosen(rng, task.regions[0], -0.08, 0.08))
        return self._close_up(rng, task, image, close, "Is there a nucleus in the middle? yes or no")

    def _numbers_later(self, rng: Generator) -> Sample:
        """A question on a region, then a line of measurements: the wanted number is known before the numbers are."""
        line, values = _full_measurements(rng)
        name = pick(rng, list(values))
        question = pick(rng, ASKED_LATER[name]).format(box=_box(rng))
        return self._later(rng, Sample(question, values[name]), line)

    def _list_later(self, rng: Generator) -> Sample:
        """A question for a term's code, then a list that has it."""
        listing, wanted = _listing(rng)
        asked = (f'What is the code of "{wanted.title}"?', f'Look up "{wanted.title}".', *_asked_code(wanted))
        return self._later(rng, Sample(pick(rng, asked), wanted.id), listing)

    def _later(self, rng: Generator, sample: Sample, text: str) -> Sample:
        """What is to be read comes after the question: at once, or after one or two answers that came too early."""
        sample = replace(sample, think=pick(rng, THOUGHTS), system=_clutter(rng))
        if rng.random() < 0.25:
            sample = replace(sample, images=(render(draw_view(rng, pick(rng, subjects(Split.TRAIN)))),))
        if rng.random() < 0.2:
            return replace(sample, question=f"{sample.question} {text}.")
        exchanges = [(_early(rng, sample.question), text)]
        if rng.random() < 0.4:
            exchanges.insert(0, (_early(rng, sample.question), f"part {int(rng.integers(4))}: box {_box(rng)}."))
        return replace(sample, exchanges=tuple(exchanges))

    def _close_up(self, rng: Generator, task: Task, image: MedImage, close: MedImage, question: str) -> Sample:
        if self._shares is VISION_KINDS or rng.random() < 0.5:
            return Sample(question, task.answer, (close,))
        return Sample(f"The second picture is a close-up. {question}", task.answer, (image, close))


def crop(image: MedImage, box: Box) -> MedImage:
    """The part of a picture inside a box."""
    return MedImage(np.ascontiguousarray(box_measure.cut(image, box)), image.modality, image.spacing_mm, image.unit, image.window)


def _brightness(rng: Generator) -> Sample | None:
    """Which half of a picture is brighter: seeing positions."""
    subject = pick(rng, subjects(Split.TRAIN))
    image = render(draw_view(rng, subject))
    grey = image.display().mean(2)
    half = grey.shape[1] // 2
    left, right = float(grey[:, :half].mean()), float(grey[:, half:].mean())
    if abs(left - right) < 4:
        return None
    return Sample("Which half is brighter, left or right?", "left" if left > right else "right", (image,))


def _copy_box(rng: Generator) -> Sample:
    """Repeat one box: the narrow door through which copying is learned; wider tasks follow at once."""
    box = _box(rng)
    return Sample(f"Repeat: {box}", box, think="I copy.")


def _copy(rng: Generator) -> Sample:
    """Repeat a list of boxes and terms, or one of them by its letter. Long lists teach copying fastest."""
    items = [_item(rng) for _ in range(int(rng.integers(1, 6)))]
    if rng.random() < 0.65:
        listing = "; ".join(items)
        return Sample(f"Repeat: {listing}", listing, think="I copy.")
    wanted = int(rng.integers(len(items)))
    listing = "; ".join(f"{'ABCDE'[i]} {item}" for i, item in enumerate(items))
    return Sample(f"{listing}. Repeat {'ABCDE'[wanted]}.", items[wanted], think="I copy.")


def _item(rng: Generator) -> str:
    if rng.random() < 0.7:
        return _box(rng)
    return f'"{_document(rng).title}"'


def _read_numbers(rng: Generator) -> Sample:
    """Read one named number from a line of measurements."""
    line, values = _measurements(rng)
    name = pick(rng, list(values))
    return Sample(f"{line}. What is the {name}?", values[name], think="I read.")


def _measurements(rng: Generator) -> tuple[str, dict[str, str]]:
    """A line as a measuring program prints it, and its numbers by name."""
    long_axis, width, height = (float(np.exp(rng.uniform(np.log(4), np.log(300)))) for _ in range(3))
    area = float(np.exp(rng.uniform(np.log(0.2), np.log(300))))
    unit = pick(rng, ["HU", "signal", "intensity"])
    mean = float(rng.uniform(-1000, 800)) if unit == "HU" else float(rng.uniform(0, 999))
    values = {
        "long axis": rounded(long_axis),
        "short axis": rounded(long_axis * float(rng.uniform(0.3, 1.0))),
        "width": rounded(width),
        "height": rounded(height),
        "area": rounded(area),
        "mean": rounded(mean),
    }
    length = pick(rng, ["mm", "mm", "mm", "px"])
    units = {"area": "cm2" if length == "mm" else "px", "mean": unit}
    names = list(values) if rng.random() < 0.7 else ["width", "height", "area", "mean"]
    line = ", ".join(f"{name} {values[name]} {units.get(name, length)}" for name in names)
    return line, {name: values[name] for name in names}


def _full_measurements(rng: Generator) -> tuple[str, dict[str, str]]:
    """The same, at times with a center, whose numbers have no name of their own."""
    line, values = _measurements(rng)
    center = f", center [{int(rng.integers(1000))}, {int(rng.integers(1000))}]" if rng.random() < 0.6 else ""
    return line + center, values


def _box(rng: Generator) -> str:
    return written(draw_box(rng, *(int(v) for v in rng.integers(5, 900, size=2))))


def _early(rng: Generator, question: str) -> str:
    """An answer given before its numbers were there: that it is unknown, or a piece of the question."""
    words = question.split()
    start = int(rng.integers(len(words)))
    said = "unknown" if rng.random() < 0.4 else " ".join(words[start : start + int(rng.integers(1, 6))])
    return f"<think>{pick(rng, THOUGHTS)}</think><answer>{said}</answer>"


def _clutter(rng: Generator) -> str:
    """Lines of no use for the question, in half of the samples: what is asked and told is found wherever it stands."""
    if rng.random() < 0.5:
        return ""
    makers = (
        lambda: _full_measurements(rng)[0],
        lambda: _document(rng).title,
        lambda: f"region {_box(rng)}: {_document(rng).title}",
    )
    return "\n".join(pick(rng, makers)() for _ in range(int(rng.integers(1, 16))))


def rounded(value: float) -> str:
    """A number as measuring programs print it: no decimals from 10 on, else one."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def _compare(rng: Generator) -> Sample:
    """Turn "higher" or "lower" into the letter that a question asks for."""
    a, b = (float(v) for v in rng.uniform(-300, 600, size=2))
    higher, first = a > b, bool(rng.integers(2))
    subject, other = ("A", "B") if first else ("B", "A")
    line = f"{subject} has mean {rounded(a)} HU, {other} has mean {rounded(b)} HU: {subject} is {'higher' if higher else 'lower'}"
    return Sample(f"{line}. Which is brighter, A or B?", subject if higher else other, think="I read.")


def _read_list(rng: Generator) -> Sample:
    """Copy a code from a list of search results: the first one, or the one of a title."""
    listing, wanted = _listing(rng)
    return Sample(f'{listing}. What is the code of "{wanted.title}"?', wanted.id, think="I read.")


def _listing(rng: Generator) -> tuple[str, Document]:
    """Three search results, and the one that is meant: mostly the first."""
    documents = [_document(rng) for _ in range(3)]
    listing = "; ".join(f"{i + 1}. {d.id} {d.title}" for i, d in enumerate(documents))
    return listing, documents[int(rng.choice(3, p=[0.7, 0.15, 0.15]))]


def _copy_terms(rng: Generator) -> Sample:
    """Repeat terms with their codes: rare tokens, unlike a box's digits."""
    documents = [_document(rng) for _ in range(int(rng.integers(1, 5)))]
    listing = "; ".join(pick(rng, (f"{d.id} {d.title}", f'"{d.title}"', d.id)) for d in documents)
    return Sample(f"Repeat: {listing}", listing, think="I copy.", system=_clutter(rng))


def _asked_code(document: Document) -> tuple[str, ...]:
    return tuple(q.format(system=SYSTEMS[document.source], term=document.title) for q in QUESTIONS)


def _document(rng: Generator) -> Document:
    system = pick(rng, list(SYSTEMS))
    return pick(rng, terms(Split.TRAIN, system))


def corpus(num_samples: int, seed: int, extra: list[Any]) -> Iterator[str]:
    """Texts to train the tokenizer on: samples, knowledge titles of the train split, and `extra` texts (prompts, tool texts)."""
    mixture = iter(PretrainMixture(seed))
    for _ in range(num_samples):
        sample = next(mixture)
        yield f"{sample.question}\n{sample.think}{sample.answer}"
    for system in SYSTEMS:
        yield from (d.title for d in terms(Split.TRAIN, system))
    yield from extra
