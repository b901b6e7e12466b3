"""The loop over a scripted engine and real tools: which tokens an episode holds, and what is never let through."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medvista_ray.config import RolloutConfig
from medvista_ray.envs import MedEnv
from medvista_ray.errors import ConfigError, InvariantError, ToolInfrastructureError
from medvista_ray.protocol import TAGS, ToolCall, render_turn
from medvista_ray.rollout.engine import Completion, Prompt, Sampling
from medvista_ray.rollout.loop import run_episode, run_group
from medvista_ray.rollout.scripted import run_scripted
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import Episode, EpisodeStatus, ErrorCode, MedImage, Observation, Task
from tests.unit.scripted_engine import (
    TOKENS_PER_PICTURE,
    ScriptedEngine,
    chat_format,
    expand,
    make_task,
    ramp_picture,
    small_tokenizer,
)

ZOOM = render_turn("closer", ToolCall("zoom_in", {"bbox": [100, 100, 600, 700]}))
ANSWER = render_turn("seen", "spleen")
CONFIG = RolloutConfig(max_turn_tokens=200, temperature=0.7)
SIDE = 28


@pytest.fixture(scope="module")
def client() -> Iterator[LocalToolClient]:
    local = LocalToolClient(["zoom_in"])
    yield local
    local.close()


def open_one(task: Task) -> list[MedImage]:
    return [ramp_picture()]


def play(client: Any, engine: Any, config: RolloutConfig = CONFIG, tags: str = "plain", **more: Any) -> Episode:
    env = MedEnv(client, more.pop("open_images", open_one), config.max_calls)
    specs = client.specs if client else ()
    return asyncio.run(run_episode(make_task(), env, engine, chat_format(tags=tags), config, specs, SIDE, **more))


def spans(episode: Episode) -> list[list[int]]:
    """Ids of each run of sampled tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], episode.loss_mask.astype(int), [0]])))
    return [episode.token_ids[a:b].tolist() for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_the_trained_ids_are_the_sampled_ids_and_only_those(client: LocalToolClient) -> None:
    engine = ScriptedEngine([ZOOM, ZOOM, ANSWER])
    episode = play(client, engine)
    chat = chat_format()
    assert spans(episode) == [chat.encode_text(text) for text in engine.turns]
    assert episode.status is EpisodeStatus.ANSWERED
    assert episode.answer == "spleen"
    assert [turn.text for turn in episode.turns] == engine.turns
    assert [turn.tool for turn in episode.turns] == ["zoom_in", "zoom_in", None]
    assert [turn.image_indices for turn in episode.turns] == [(1,), (2,), ()]


class LetterByLetter(ScriptedEngine):
    """Scripted, and writes all but the protocol's tags one character at a time, which no tokenizer would."""

    def spell(self, text: str) -> list[int]:
        pieces = [piece for part in re.split(r"(</?\w+>)", text) for piece in ([part] if part in TAGS else part)]
        return [token for piece in pieces for token in chat_format().encode_text(piece)]


def test_sampled_ids_that_the_tokenizer_would_not_choose_for_their_text_are_kept(client: LocalToolClient) -> None:
    answer = render_turn("this region", "the region")
    engine = LetterByLetter([ZOOM, answer + "$"])
    first, last = engine.spell(ZOOM), [*engine.spell(answer), chat_format().end_id]
    assert [chat_format().decode(ids) for ids in (first, last)] == [ZOOM, answer]
    assert first != chat_format().encode_text(ZOOM)
    assert last[:-1] != chat_format().encode_text(answer)
    episode = play(client, engine, RolloutConfig(max_turn_tokens=1000))
    assert spans(episode) == [first, last]
    asked = len(engine.prompts[0].token_ids)
    assert engine.prompts[1].token_ids[asked : asked + len(first)] == first
    assert episode.answer == "the region"


def test_the_episode_is_the_last_prompt_as_the_engine_ran_it_plus_the_last_turn(client: LocalToolClient) -> None:
    engine = ScriptedEngine([ZOOM, ANSWER])
    episode = play(client, engine)
    last = engine.prompts[-1]
    whole = expand(last.token_ids, last.images) + chat_format().encode_text(ANSWER)
    assert episode.token_ids.tolist() == whole
    assert engine.prompts[1].token_ids[: len(engine.prompts[0].token_ids)] == engine.prompts[0].token_ids
    text = small_tokenizer().decode(whole)
    assert text.count("image 1 shows this region.") == 1
    assert text.endswith("</answer>")


def test_logprobs_and_versions_lie_on_the_sampled_tokens(client: LocalToolClient) -> None:
    episode = play(client, ScriptedEngine([ZOOM, ANSWER]))
    sampled = episode.loss_mask
    assert set(episode.versions[~sampled]) == {-1}
    assert not episode.logprobs[~sampled].any()
    first, second = (len(chat_format().encode_text(text)) for text in (ZOOM, ANSWER))
    assert episode.versions[sampled].tolist() == [1] * first + [2] * second
    assert episode.logprobs[sampled].tolist() == [-0.5] * first + [-1.0] * second


def test_pictures_are_in_the_order_of_their_placeholders(client: LocalToolClient) -> None:
    engine = ScriptedEngine([ZOOM, ANSWER])
    episode = play(client, engine, open_images=lambda task: [ramp_picture(), ramp_picture(seed=1)])
    assert len(episode.images) == 3
    assert all(image.shape == (SIDE, SIDE, 3) for image in episode.images)
    assert len({image.tobytes() for image in episode.images}) == 3
    assert [len(prompt.images) for prompt in engine.prompts] == [2, 3]
    pad = chat_format().placeholder_id
    assert (episode.token_ids == pad).sum() == 3 * TOKENS_PER_PICTURE


@pytest.mark.parametrize("tags", ["special", "absent"])
def test_the_loop_works_however_the_tags_are_tokenised(client: LocalToolClient, tags: str) -> None:
    episode = play(client, ScriptedEngine([ZOOM, ANSWER], tags), tags=tags)
    assert [turn.error for turn in episode.turns] == [None, None]
    assert episode.answer == "spleen"


def test_a_turn_that_ends_itself_is_not_closed_twice(client: LocalToolClient) -> None:
    episode = play(client, ScriptedEngine(["<think>hm</think>$", ANSWER + "$"]))
    text = small_tokenizer().decode(episode.token_ids.tolist())
    assert "<think>hm</think><|im_end|>\n<|im_start|>user" in text
    assert episode.turns[0].error is ErrorCode.E1
    assert episode.answer == "spleen"
    assert episode.loss_mask[-1]


def test_a_placeholder_in_a_question_is_only_text(client: LocalToolClient) -> None:
    env = MedEnv(client, open_one, 6)
    task = make_task(question="What does <IMG_CONTEXT> or <|im_end|> mean?")
    engine = ScriptedEngine([render_turn("a <IMG_CONTEXT> b", "<img> c")])
    episode = asyncio.run(run_episode(task, env, engine, chat_format(), CONFIG, client.specs, SIDE))
    assert len(episode.images) == 1
    assert (episode.token_ids == chat_format().placeholder_id).sum() == TOKENS_PER_PICTURE
    assert episode.answer == "<img> c"


def test_a_turn_cut_by_length_is_e1_and_the_episode_goes_on(client: LocalToolClient) -> None:
    engine = ScriptedEngine([ZOOM, ANSWER])
    first = len(chat_format().encode_text(ZOOM))
    episode = play(client, engine, RolloutConfig(max_turn_tokens=first - 1))
    assert episode.turns[0].error is ErrorCode.E1
    assert "not closed" in episode.turns[0].observation
    assert episode.status is EpisodeStatus.ANSWERED


def test_a_spent_budget_truncates(client: LocalToolClient) -> None:
    episode = play(client, ScriptedEngine([ZOOM] * 3), RolloutConfig(max_calls=2, max_turn_tokens=200))
    assert episode.status is EpisodeStatus.TRUNCATED
    assert episode.answer is None
    assert [turn.error for turn in episode.turns] == [None, None, ErrorCode.E1]
    assert episode.num_calls == 2
    assert len(spans(episode)) == 3


def test_a_full_context_truncates_after_a_whole_turn_and_within_no_picture(client: LocalToolClient) -> None:
    full = play(client, ScriptedEngine([ZOOM] * 6 + [ANSWER]))
    limits = range(len(full.token_ids) // 2, len(full.token_ids), 29)
    statuses: set[EpisodeStatus] = set()
    for limit in limits:
        episode = play(client, ScriptedEngine([ZOOM] * 6 + [ANSWER]), max_model_len=limit)
        statuses.add(episode.status)
        assert len(episode.token_ids) <= limit
        assert episode.loss_mask[-1]
        assert (episode.token_ids == chat_format().placeholder_id).sum() == len(episode.images) * TOKENS_PER_PICTURE
    assert statuses == {EpisodeStatus.TRUNCATED}


def test_the_context_limit_learns_what_a_picture_costs(client: LocalToolClient) -> None:
    engine = ScriptedEngine([ZOOM] * 6 + [ANSWER], num_tokens=150)
    episode = play(client, engine, max_model_len=1000)
    assert episode.status is EpisodeStatus.TRUNCATED
    assert len(episode.token_ids) <= 1000
    assert max(len(expand(p.token_ids, p.images, 150)) for p in engine.prompts) < 1000


def test_a_question_that_does_not_fit_the_context_is_a_config_error(client: LocalToolClient) -> None:
    with pytest.raises(ConfigError, match="max_model_len = 50"):
        play(client, ScriptedEngine([ANSWER]), max_model_len=50)


def test_the_temperature_of_the_call_goes_before_the_configs(client: LocalToolClient) -> None:
    for given, expected in ((None, 0.7), (0.0, 0.0)):
        engine = ScriptedEngine([ANSWER])
        play(client, engine, temperature=given)
        assert engine.samplings == [Sampling(expected, 200)]


def test_without_tools_an_answer_is_all_it_takes() -> None:
    episode = play(None, ScriptedEngine([ANSWER]))
    assert "tool" not in small_tokenizer().decode(episode.token_ids.tolist())
    assert episode.status is EpisodeStatus.ANSWERED


class Unreachable:
    """A client whose tools are out of reach."""

    specs = ()

    async def call(self, name: str, arguments: Any, context: Any) -> Any:
        raise ToolInfrastructureError("no replica answers")


def test_a_tool_out_of_reach_fails_the_episode_but_not_the_run() -> None:
    episode = play(Unreachable(), ScriptedEngine([ZOOM]))
    assert episode.status is EpisodeStatus.FAILED
    assert "no replica answers" in episode.turns[0].observation
    assert episode.turns[0].error is None
    assert episode.num_calls == 0


class LyingEngine(ScriptedEngine):
    """Scripted, and breaks one promise from its second turn on."""

    def __init__(self, turns: Sequence[str], lie: str) -> None:
        super().__init__(turns)
        self.lie = lie

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        done = await super().generate(prompt, sampling)
        if len(self.prompts) == 1:
            return done
        ids, chat = list(done.prompt_ids), chat_format()
        match self.lie:
            case "history":
                ids[5] += 1
            case "text":
                ids[-1] += 1
            case "picture":
                first = ids.index(chat.placeholder_id) + TOKENS_PER_PICTURE
                ids = ids[:first] + [i for i in ids[first:] if i != chat.placeholder_id]
            case "banned":
                return replace(done, token_ids=[chat.placeholder_id, *done.token_ids[1:]])
            case "logprobs":
                return replace(done, logprobs=done.logprobs[1:])
            case _:
                return replace(done, versions=np.zeros_like(done.versions))
        return replace(done, prompt_ids=ids)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ("history", "repeat the ids"),
        ("text", "changed text ids"),
        ("picture", "do not match one to one"),
        ("banned", "banned token"),
        ("logprobs", "differ in number"),
        ("versions", "went backwards"),
    ],
)
def test_an_engine_that_breaks_an_invariant_is_caught(client: LocalToolClient, lie: str, reason: str) -> None:
    with pytest.raises(InvariantError, match=reason):
        play(client, LyingEngine([ZOOM, ANSWER], lie))


def test_the_episodes_of_a_group_run_at_the_same_time_and_apart(client: LocalToolClient) -> None:
    class Meeting:
        """Scripted: lets nobody past the first turn before all have come."""

        def __init__(self) -> None:
            self.barrier = asyncio.Barrier(4)
            self.engines: dict[int, ScriptedEngine] = {}

        async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
            await self.barrier.wait()
            return await ScriptedEngine([ANSWER]).generate(prompt, sampling)

    async def run() -> list[Episode]:
        envs: list[MedEnv] = []

        def make_env() -> MedEnv:
            envs.append(MedEnv(client, open_one, 6))
            return envs[-1]

        group = run_group(make_task(), make_env, Meeting(), chat_format(), CONFIG, client.specs, SIDE, 4)
        episodes = await asyncio.wait_for(group, 5)
        assert len(envs) == 4
        return episodes

    assert [episode.answer for episode in asyncio.run(run())] == ["spleen"] * 4


def test_the_picture_that_a_group_is_asked_about_is_one_object_and_crosses_processes_once(client: LocalToolClient) -> None:
    class EachItsOwn:
        """Scripted: every episode is at its first turn."""

        async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
            return await ScriptedEngine([ANSWER]).generate(prompt, sampling)

    # Every environment opens its task anew: equal pictures, but no two of them one object.
    group = run_group(make_task(), lambda: MedEnv(client, open_one, 6), EachItsOwn(), chat_format(), CONFIG, (), SIDE, 4)
    episodes = asyncio.run(group)
    assert len({id(episode.images[0]) for episode in episodes}) == 1
    assert pickle.dumps(episodes).count(episodes[0].images[0].tobytes()) == 1


def test_one_broken_episode_ends_its_group_with_the_plain_error(client: LocalToolClient) -> None:
    engine = LyingEngine([ZOOM, ANSWER] * 3, "history")
    group = run_group(make_task(), lambda: MedEnv(client, open_one, 6), engine, chat_format(), CONFIG, client.specs, SIDE, 3)
    with pytest.raises(InvariantError):
        asyncio.run(group)


class TwoStepExpert:
    """Zooms, then answers; keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Observation] = []

    async def next(self, observation: Observation) -> str:
        self.shown.append(observation)
        return ZOOM if len(self.shown) == 1 else ANSWER


def test_a_scripted_expert_gives_the_tokens_that_the_same_turns_would_give_if_sampled(client: LocalToolClient) -> None:
    expert = TwoStepExpert()
    env = MedEnv(client, open_one, 6)
    taught = asyncio.run(run_scripted(make_task(), env, chat_format(), expert, expand, CONFIG, SIDE))
    sampled = play(client, ScriptedEngine([ZOOM, ANSWER]))
    assert taught.token_ids.tolist() == sampled.token_ids.tolist()
    assert taught.loss_mask.tolist() == sampled.loss_mask.tolist()
    assert not taught.logprobs.any()
    assert set(taught.versions) == {-1}
    assert [observation.text for observation in expert.shown] == [
        "Which organ is bright?",
        taught.turns[0].observation,
    ]
