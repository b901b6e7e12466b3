"""What the tiny policy's base is taught: on train subjects and concepts alone, reading in every order, and never a tool."""

from __future__ import annotations

import itertools

import pytest

from medvista_ray.models.policy import TINY_FOLDER, Policy, load_policy
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.tasks.bench.families.concept_code import SYSTEMS, terms
from medvista_ray.tools.catalog import TOOLS
from medvista_ray.types import Split
from trainers.pretrain_data import STAGES, PretrainMixture, Sample
from trainers.pretrain_tiny import episode_of

pytestmark = pytest.mark.assets
NUM_SAMPLES = 80


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(TINY_FOLDER)


@pytest.fixture(scope="module", params=sorted(STAGES))
def samples(request: pytest.FixtureRequest) -> list[Sample]:
    return list(itertools.islice(PretrainMixture(5, STAGES[request.param]), NUM_SAMPLES))


def _text(sample: Sample) -> str:
    said = [text for exchange in sample.exchanges for text in exchange]
    return " ".join((sample.system, sample.question, *said, sample.think, sample.answer))


def test_no_sample_names_a_tool_or_shows_a_call(samples: list[Sample], policy: Policy) -> None:
    chat = ChatFormat.from_policy(policy.tokenizer, policy.model_type)
    call = policy.tokenizer.get_vocab()["<tool_call>"]
    compound = [name for name in TOOLS.names() if "_" in name]
    for sample in samples:
        assert not [name for name in compound if name in _text(sample)]
        assert call not in episode_of(sample, policy, chat).token_ids


def test_codes_are_those_of_train_concepts(samples: list[Sample]) -> None:
    held_out = {d.id for split in Split if split is not Split.TRAIN for system in SYSTEMS for d in terms(split, system)}
    for sample in samples:
        words = {word.strip('".,;?') for word in _text(sample).split()}
        assert not words & held_out


def test_what_is_wanted_stands_in_the_text_that_comes_after_the_question() -> None:
    for kind in ("numbers_later", "list_later"):
        samples = list(itertools.islice(PretrainMixture(5, {kind: 1.0}), NUM_SAMPLES))
        for sample in samples:
            assert sample.answer in (sample.exchanges[-1][1] if sample.exchanges else sample.question)
        assert {len(sample.exchanges) for sample in samples} == {0, 1, 2}
        assert {bool(sample.images) for sample in samples} == {bool(sample.system) for sample in samples} == {True, False}


def test_only_the_last_answer_of_several_turns_is_trained(policy: Policy) -> None:
    chat = ChatFormat.from_policy(policy.tokenizer, policy.model_type)
    early = ("<think>I look.</think><answer>unknown</answer>", "long axis 23 mm.")
    sample = Sample("How long is it?", "23", think="I read.", exchanges=(early,), system="Lines of no use.")
    episode = episode_of(sample, policy, chat)
    trained = policy.tokenizer.decode(episode.token_ids[episode.loss_mask].tolist(), skip_special_tokens=False)
    assert trained == "<think>I read.</think><answer>23</answer>"
    whole = policy.tokenizer.decode(episode.token_ids.tolist(), skip_special_tokens=False)
    assert (
        whole.index("Lines of no use.")
        < whole.index("How long is it?")
        < whole.index("unknown")
        < whole.index("long axis 23 mm.")
        < whole.index(trained)
    )
