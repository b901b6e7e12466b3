"""One episode as a picture: pictures with boxes on the left, the text of each turn beside them, outcome on top.

Owns the layout, in pixels. Invariant: what is drawn is what the log says; gold boxes are green and dashed, the
policy's orange with the number of the turn. Called by `medvista-ray episodes show`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from medvista_ray.reports.gallery import DrawnBox, boxes_of, split_tags
from medvista_ray.reports.trajectory import EpisodeRecord, picture_path
from medvista_ray.types import Turn

WIDTH, SIDE, PAD, GAP = 1180, 300, 24, 14
"""Of the page, of one picture, of the margin, between parts."""
TEXT_LEFT = PAD + SIDE + PAD
TEXT_WIDTH = WIDTH - TEXT_LEFT - PAD
MAX_CHARACTERS = 1500
"""Of one piece of text; the rest is cut, and said so."""
INK, GREY, PAPER, RULE = "#1c2126", "#6b7680", "#ffffff", "#d9dee3"
GOLD, POLICY, GOOD, BAD = "#00b050", "#ff8c00", "#147a3d", "#b3261e"
_SPELT = str.maketrans(
    {"µ": "u", "μ": "u", "ß": "ss", "≤": "<=", "≥": ">=", "±": "+/-", "×": "x", "°": " deg", "→": "->", "–": "-", "—": "-"}
    | dict.fromkeys("‘’", "'")
    | dict.fromkeys("“”", '"')
)
_COLOURS = {"think": GREY, "tool_call": "#0b57a4", "answer": INK}


@dataclass(frozen=True)
class _Text:
    """A paragraph."""

    text: str
    colour: str = INK
    size: int = 16


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_episode(record: EpisodeRecord, folder: Path) -> Image.Image:
    """The episode as an RGB picture, WIDTH pixels wide; pictures that the log did not keep are empty frames."""
    boxes = _boxes(record)
    frames = {index: _frame(record, folder, index, boxes[index]) for index in range(len(record.images))}
    rows = [_row([], _heading(record))]
    own = [frames[index] for index in range(record.num_task_images) if index in frames]
    rows.append(_row(own, [_Text("question", GREY, 14), _Text(record.question, size=18)]))
    for number, turn in enumerate(record.turns, start=1):
        brought = [frames[index] for index in turn.image_indices if index in frames]
        rows.append(_row(brought, _turn(number, turn)))
    page = Image.new("RGB", (WIDTH, sum(row.height for row in rows) + PAD), PAPER)
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def _heading(record: EpisodeRecord) -> list[_Text]:
    outcome = "right" if record.correct else "wrong" if record.answer is not None else record.status.value
    step = "" if record.step is None else f" · step {record.step}"
    versions = f" · policy versions {record.versions[0]}..{record.versions[1]}" if record.versions else ""
    parts = ", ".join(f"{name} {value:+.2f}" for name, value in record.reward_parts.items())
    codes = ", ".join(record.error_codes) or "none"
    return [
        _Text(f"{outcome}: {record.answer or 'no answer'}   (gold: {record.gold})", GOOD if record.correct else BAD, 24),
        _Text(f"reward {record.reward:.2f} = {parts or '-'}   ·   errors: {codes}"),
        _Text(f"{record.task_id} · {record.modality} · arm {record.arm}{step}{versions}", GREY, 14),
        _Text("boxes: green, dashed = gold; orange = the policy's, with the turn's number", GREY, 14),
    ]


def _turn(number: int, turn: Turn) -> list[_Text]:
    did = f"{turn.tool} · {1000 * turn.latency_s:.0f} ms" if turn.tool else "answer" if "<answer>" in turn.text else "no call"
    head = _Text(f"turn {number} · {did}" + (f" · error {turn.error}" if turn.error else ""), BAD if turn.error else GREY, 14)
    said = [_Text(text, _COLOURS.get(tag, INK)) for tag, text in split_tags(turn.text)]
    back = [_Text(f"reply: {turn.observation}", BAD if turn.error else GOOD)] if turn.observation else []
    return [head, *said, *back]


def _boxes(record: EpisodeRecord) -> dict[int, list[tuple[DrawnBox, str]]]:
    """Picture index -> boxes with their colours."""
    boxes: dict[int, list[tuple[DrawnBox, str]]] = {index: [] for index in range(len(record.images))}
    for box in record.regions:
        boxes.setdefault(0, []).append((DrawnBox(box, "gold"), GOLD))
    for number, turn in enumerate(record.turns, start=1):
        for index, drawn in boxes_of(turn, str(number)):
            boxes.setdefault(index, []).append((drawn, POLICY))
    return boxes


def _frame(record: EpisodeRecord, folder: Path, index: int, boxes: Iterable[tuple[DrawnBox, str]]) -> Image.Image:
    """One picture, SIDE wide, its boxes and its number below."""
    path = picture_path(folder, record.images[index])
    frame = Image.new("RGB", (SIDE, SIDE + 22), PAPER)
    pen = ImageDraw.Draw(frame)
    if path.exists():
        with Image.open(path) as picture:
            frame.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    else:
        pen.rectangle((0, 0, SIDE - 1, SIDE - 1), outline=RULE)
        pen.text((12, 12), "not kept", GREY, _font(14))
    for drawn, colour in boxes:
        _box(pen, drawn, colour)
    pen.text((0, SIDE + 3), f"image {index}", GREY, _font(14))
    return frame


def _box(pen: ImageDraw.ImageDraw, drawn: DrawnBox, colour: str) -> None:
    x0, y0, x1, y1 = (round(value * (SIDE - 1) / 1000) for value in drawn.box)
    for start in range(0, 2 * (x1 - x0 + y1 - y0), 10 if colour == GOLD else 1):
        _dash(pen, (x0, y0, x1, y1), start, 6 if colour == GOLD else 1, colour)
    if colour == POLICY:  # above the box, so that it hides nothing in it
        pen.text((x0, max(y0 - 18, 0)), drawn.label, colour, _font(14), stroke_width=1, stroke_fill="black")


def _dash(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], start: int, length: int, colour: str) -> None:
    """A piece of the box's outline, `start` pixels along it."""
    x0, y0, x1, y1 = box
    wide, high = x1 - x0, y1 - y0
    for at in range(start, start + length):
        along = at % max(2 * (wide + high), 1)
        if along < wide:
            point = (x0 + along, y0)
        elif along < wide + high:
            point = (x1, y0 + along - wide)
        elif along < 2 * wide + high:
            point = (x1 - (along - wide - high), y1)
        else:
            point = (x0, y1 - (along - 2 * wide - high))
        pen.rectangle((point[0], point[1], point[0] + 1, point[1] + 1), fill=colour)


def _row(frames: Sequence[Image.Image], texts: Sequence[_Text]) -> Image.Image:
    """Pictures (stacked) on the left, texts on the right; without pictures the texts keep their column."""
    blocks = [(_wrap(text), text) for text in texts]
    text_height = sum(len(lines) * _line(text.size) + 6 for lines, text in blocks)
    height = GAP + max(text_height, sum(frame.height for frame in frames)) + GAP
    row = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(row)
    pen.line((PAD, 0, WIDTH - PAD, 0), fill=RULE)
    top = GAP
    for frame in frames:
        row.paste(frame, (PAD, top))
        top += frame.height
    top = GAP
    for lines, text in blocks:
        for line in lines:
            pen.text((TEXT_LEFT, top), line, text.colour, _font(text.size))
            top += _line(text.size)
        top += 6
    return row


def _line(size: int) -> int:
    return round(size * 1.4)


def _wrap(paragraph: _Text) -> list[str]:
    """Lines that fit TEXT_WIDTH; a word longer than a line is broken."""
    text = drawable(paragraph.text[:MAX_CHARACTERS]) + (" ... (cut)" if len(paragraph.text) > MAX_CHARACTERS else "")
    lines: list[str] = []
    for source in text.splitlines() or [""]:
        line = ""
        for word in source.split(" "):
            for piece in _pieces(word, paragraph.size):
                longer = f"{line} {piece}" if line else piece
                if line and _font(paragraph.size).getlength(longer) > TEXT_WIDTH:
                    lines.append(line)
                    longer = piece
                line = longer
        lines.append(line)
    return lines


def drawable(text: str) -> str:
    """In the characters that Pillow's own font has: accents go, symbols are spelt, the rest becomes "?"."""
    plain = unicodedata.normalize("NFKD", text.translate(_SPELT))
    kept = "".join(char for char in plain if not unicodedata.combining(char))
    return "".join(char if char.isascii() or char == "·" else "?" for char in kept)


def _pieces(word: str, size: int) -> list[str]:
    most = max(TEXT_WIDTH // size, 1)  # no character is wider than its size
    return [word[i : i + most] for i in range(0, len(word), most)] if len(word) > most else [word]
