"""Graders: what is right, and every way in which lenient graders pay for wrong answers."""

from __future__ import annotations

import pytest

from medvista_ray.errors import UserError
from medvista_ray.tasks.graders import grade, normalise
from medvista_ray.types import AnswerKind, Task
from tests.unit.scripted_engine import make_task

SIDES = ("left", "right")
LETTERED = "Which side is larger? A) left B) right"


def choice(answer: str, choices: tuple[str, ...] = SIDES, question: str = "Which side, left or right?") -> Task:
    return make_task(kind=AnswerKind.CHOICE, answer=answer, choices=choices, question=question)


def number(answer: str, question: str = "How long?", **fields: object) -> Task:
    return make_task(kind=AnswerKind.NUMBER, answer=answer, question=question, **fields)


@pytest.mark.parametrize("answer", ["left", "Left", " LEFT. ", "'left'", "(left)", "\uff4ceft"])
def test_a_choice_is_right_by_its_own_text(answer: str) -> None:
    assert grade(choice("left"), answer)


@pytest.mark.parametrize(
    "answer",
    [
        "right",
        "on the left",
        "left or right",
        "left, right",
        "left lung",
        "not left",
        "lef",
        "a",
        "A",
        "",
        " ",
        ".",
        None,
    ],
)
def test_a_choice_is_wrong_if_it_is_anything_more_or_less(answer: str | None) -> None:
    assert not grade(choice("left"), answer)


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B)", "B.", "b) right", "B. right", "(B) Right", "right"])
def test_a_letter_counts_where_the_question_shows_letters(answer: str) -> None:
    assert grade(choice("right", question=LETTERED), answer)


@pytest.mark.parametrize("answer", ["A", "C", "A) right", "B) left", "A or B", "AB", "b right", "option", "A) left"])
def test_a_wrong_or_contradictory_letter_is_wrong(answer: str) -> None:
    assert not grade(choice("right", question=LETTERED), answer)


@pytest.mark.parametrize("question", ["(A) left (B) right", "A. left\nB. right", "a: left b: right"])
def test_letters_are_seen_in_every_usual_form(question: str) -> None:
    assert grade(choice("right", question=question), "B")


def test_a_choices_own_text_goes_before_its_letter() -> None:
    task = choice("b", ("b", "a"), "Which vitamin? A) b B) a")
    assert grade(task, "b")
    assert not grade(task, "a")


@pytest.mark.parametrize(("gold", "other"), [("yes", "no"), ("no", "yes")])
def test_yes_and_no_are_told_apart_whatever_else_is_said(gold: str, other: str) -> None:
    task = choice(gold, ("yes", "no"), "Is there a nodule?")
    assert grade(task, gold.upper())
    for answer in (other, f"{gold} {other}", f"{gold}, {other}", f"{gold} it is", "not", "know", "none"):
        assert not grade(task, answer)


@pytest.mark.parametrize("answer", ["12", "12.0", "12 mm", "12mm", "12.0 mm.", "about 12 mm", "~12", "+12", "1.2 cm"])
def test_a_number_is_right_with_or_without_its_unit(answer: str) -> None:
    assert grade(number("12", "How long is it in mm?"), answer)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "12-14",
            "12\u201314",
            "12 to 14",
            "12 or 14",
            "12 14",
            "between 10 and 14",
            "12 mm and 13 mm",
            "12 x 9",
            "12/2",
        ),
        *(
            "12 cm",
            "12 px",
            "12 HU",
            "12 mm2",
            "12 apples",
            "1,2",
            "12,5",
            "-12",
            "120",
            "twelve",
            "mm",
            "1e1",
            "nan",
            "inf",
        ),
        *("", "?", "the answer is 12", "12 mm, I think", "0x0c", "1 2"),
    ],
)
def test_a_number_is_wrong_if_it_hedges_or_changes_unit(answer: str) -> None:
    assert not grade(number("12", "How long is it in mm?"), answer)


@pytest.mark.parametrize("answer", ["1200", "1,200", "1,200.0", "1200 px"])
def test_thousands_separators_are_read(answer: str) -> None:
    assert grade(number("1200"), answer)
    assert not grade(number("1"), answer)


@pytest.mark.parametrize("answer", ["-812", "-812 HU", "\u2212812 HU", "-812.0"])
def test_negative_values_keep_their_sign(answer: str) -> None:
    assert grade(number("-812", slack=5), answer)
    assert not grade(number("812", slack=5), answer)


def test_tolerance_is_relative_and_slack_is_absolute_and_the_wider_one_counts() -> None:
    relative = number("-200", tolerance=0.1)
    assert grade(relative, "-220")
    assert grade(relative, "-180")
    assert not grade(relative, "-221")
    absolute = number("0", slack=2.0, tolerance=0.5)
    assert grade(absolute, "2")
    assert not grade(absolute, "2.1")
    assert grade(number("0.3", tolerance=0.1), "0.33")


def test_units_convert_within_their_dimension() -> None:
    assert grade(number("3.1", "What is the area in cm\u00b2?", tolerance=0.01), "310 mm2")
    assert grade(number("3.1", "What is the area in cm2?", tolerance=0.01), "3.1 cm^2")
    assert grade(number("14 mm", "How long?"), "1.4 cm")
    assert not grade(number("14 mm", "How long?"), "14 cm")


def test_a_counted_thing_may_follow_where_the_question_names_it() -> None:
    task = number("7", "How many nuclei are shown?")
    assert grade(task, "7 nuclei")
    assert not grade(task, "7 cells")


def test_a_number_alias_is_right_too() -> None:
    assert grade(number("12", aliases=("15",)), "15")


def test_a_gold_that_is_no_number_is_the_sources_mistake() -> None:
    with pytest.raises(UserError, match="t1"):
        grade(number("many"), "3")


def test_a_text_answer_is_right_as_a_whole_or_by_an_alias() -> None:
    task = make_task(answer="Pneumonia, unspecified organism", aliases=("J18.9",))
    for answer in ("pneumonia,  unspecified organism", "J18.9", "j18.9."):
        assert grade(task, answer)
    for answer in ("pneumonia", "J18", "J18.90", "J18.9 J18.0", "no pneumonia, unspecified organism", "organism"):
        assert not grade(task, answer)


def test_normalising_twice_changes_nothing_more() -> None:
    for text in ("  A. B! ", "(x) (y)", "\u2212812 HU.", "caf\u00e9 ", '"quoted"', ". "):
        assert normalise(normalise(text)) == normalise(text)
