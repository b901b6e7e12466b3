"""Chat tokens: text never becomes structure, the protocol's tags stay whole, structure is never sampled."""

from __future__ import annotations

import random

import pytest

from medvista_ray.errors import ConfigError
from medvista_ray.protocol import TAGS
from medvista_ray.rollout.chat import PICTURE_TOKENS, ChatFormat, banned_token_ids
from medvista_ray.rollout.pictures import policy_picture
from medvista_ray.types import MedImage, Observation
from tests.unit.scripted_engine import SPECIAL, chat_format, ramp_picture, small_tokenizer

KINDS = ("plain", "special", "absent")


def special_ids() -> set[int]:
    vocab = small_tokenizer().get_vocab()
    return {vocab[name] for name in SPECIAL}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECIAL)
def test_a_structural_token_in_prose_stays_prose(kind: str, name: str) -> None:
    text = f"what is {name}? <{name}>{name}{name}"
    chat = chat_format(tags=kind)
    ids = chat.encode_text(text)
    assert not special_ids() & set(ids)
    assert chat.decode(ids) == text


def test_random_prose_never_makes_structure_and_always_reads_back() -> None:
    rng = random.Random(0)
    chat = chat_format()
    pieces = [*SPECIAL, *TAGS, "<", ">", "<|", "|>", "IMG_CONTEXT>", "im_end|>", "img", "\n", " ", "a", "\u00e9"]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=8))
        ids = chat.encode_text(text)
        assert not special_ids() & set(ids)
        assert chat.decode(ids) == text


@pytest.mark.parametrize("kind", ["plain", "special"])
def test_a_protocol_tag_that_is_a_token_stays_one_token(kind: str) -> None:
    vocab = small_tokenizer(kind).get_vocab()
    ids = chat_format(tags=kind).encode_text("<think>a</think><answer>b</answer>")
    assert [i for i in ids if i in {vocab[tag] for tag in TAGS}] == [
        vocab[tag] for tag in ("<think>", "</think>", "<answer>", "</answer>")
    ]


def test_the_first_prompt_is_chatml_with_one_placeholder_per_picture() -> None:
    chat = chat_format()
    ids = chat.begin("be brief", Observation("what?", (ramp_picture(), ramp_picture(seed=1))))
    assert small_tokenizer().decode(ids) == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\n<IMG_CONTEXT>\n<IMG_CONTEXT>\nwhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert chat.num_pictures(ids) == 2


def test_the_first_prompt_equals_the_tokenizer_run_on_the_rendered_text() -> None:
    ids = chat_format().begin("be brief", Observation("what?", (ramp_picture(),)))
    assert ids == small_tokenizer().encode(small_tokenizer().decode(ids), add_special_tokens=False)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_pictures_stand_between_vision_tokens(model_type: str) -> None:
    ids = chat_format(model_type).observe(Observation("seen", (ramp_picture(),)))
    assert small_tokenizer().decode(ids) == (
        "<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>\nseen<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_observation_does_not_close_a_turn_that_closed_itself() -> None:
    chat = chat_format()
    observation = Observation("ok")
    assert [chat.end_id, *chat.observe(observation, closed=True)] == chat.observe(observation)


def test_sampled_ids_read_as_text_with_their_tags_and_without_the_end_of_turn() -> None:
    for kind in KINDS:
        chat = chat_format(tags=kind)
        text = "<think>a b</think><answer>c</answer>"
        assert chat.decode([*chat.encode_text(text), chat.end_id]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_all_structure_but_the_end_of_turn_is_banned_and_nothing_else(kind: str) -> None:
    vocab = small_tokenizer(kind).get_vocab()
    names = {name for name, index in vocab.items() if index in banned_token_ids(small_tokenizer(kind))}
    assert names == set(SPECIAL) - {"<|im_end|>"}
    assert list(banned_token_ids(small_tokenizer(kind))) == sorted(vocab[name] for name in names)


def test_an_unknown_policy_type_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="qwen2_5_vl"):
        ChatFormat.from_policy(small_tokenizer(), "qwen2_vl")


def test_a_tokenizer_without_picture_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="<nothing>"):
        ChatFormat(small_tokenizer(), ("<nothing>",))


def test_every_picture_format_has_exactly_one_placeholder() -> None:
    for model_type in PICTURE_TOKENS:
        chat = chat_format(model_type)
        assert chat.begin("s", Observation("t", (ramp_picture(),))).count(chat.placeholder_id) == 1


def test_a_policy_picture_is_square_windowed_and_antialiased() -> None:
    image = ramp_picture(64, 96)
    shown = policy_picture(image, 32)
    assert shown.shape == (32, 32, 3)
    assert shown.dtype.name == "uint8"
    assert shown.std() < image.display().std() * 0.7  # noise is averaged, not picked
    assert abs(float(shown.mean()) - float(image.display().mean())) < 3
    assert (policy_picture(image, 32) == shown).all()


def test_a_picture_of_the_right_size_is_taken_as_it_is() -> None:
    image = MedImage(pixels=ramp_picture(32, 32).display(), modality="histology")
    assert (policy_picture(image, 32) == image.pixels).all()
