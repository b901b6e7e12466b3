"""Oracles: the engine's log-probs are the learner's, an updated engine is a fresh engine, sampled ids are trained ids.

Real parts throughout: vLLM, the weight transport, the chat format, the transcript and the learner's forward. Only the
question, the pictures and the "tools" are made up here: a random policy calls no tools, so each turn is followed by a
new picture.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medvista_ray.errors import WeightUpdateError
from medvista_ray.models.batching import build_batch, split_microbatches
from medvista_ray.models.logprobs import token_logprobs
from medvista_ray.models.policy import Policy, load_policy, trainable_parameters
from medvista_ray.models.tiny_architecture import TINY, build_tiny_processor, save_policy_folder
from medvista_ray.rollout import vllm_settings
from medvista_ray.rollout.chat import ChatFormat, banned_token_ids
from medvista_ray.rollout.engine import Completion, Prompt, Sampling
from medvista_ray.rollout.transcript import Transcript
from medvista_ray.rollout.vllm_engine import VllmEngine
from medvista_ray.rollout.vllm_settings import EngineSettings
from medvista_ray.types import AnswerKind, Episode, EpisodeStatus, MedImage, Observation, Split, Task
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.shared_memory import SharedMemoryPublisher
from tests.random_policy import SPREAD, random_policy
from tests.unit.tiny_policies import save_random_policy

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

NUM_EPISODES, NUM_TURNS, NUM_UPDATES, TURN_TOKENS = 64, 3, 5, 24
TEMPERATURE = 0.8
LEARNER_BOUND, FRESH_BOUND = 1e-4, 1e-5
NO_LAYERS_OWN = {"model.language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32)}
"""In the files of old checkpoints, and dropped by vLLM."""
TASK = Task(
    id="t", source="s", family="f", split=Split.TRAIN, subject="x", modality="CT",
    question="Which region is brighter?", answer="left", kind=AnswerKind.TEXT,
)  # fmt: skip


@dataclass(frozen=True)
class Sampled:
    """One turn."""

    version: int
    """That served when the turn was asked for: its prompt's keys and values may be of this version."""
    completion: Completion

    @property
    def crosses_an_update(self) -> np.ndarray:
        """[sampled tokens] True where a later version sampled the token."""
        return self.completion.versions > self.version


@dataclass
class Lab:
    """A learner and an engine that serve the same policy."""

    policy: Policy
    chat: ChatFormat
    banned: tuple[int, ...]
    engine: VllmEngine
    publisher: SharedMemoryPublisher
    runner: asyncio.Runner
    states: dict[int, dict[str, torch.Tensor]]
    folder: Path

    def restep(self, train_vision: bool = True, **others: torch.Tensor) -> Manifest:
        """Change every weight of the learner, or all but what sees pictures, and publish these as the next version.

        `others` are published with them.
        """
        version = max(self.states) + 1
        trained = trainable_parameters(self.policy, train_vision)
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(torch.randn_like(parameter) * SPREAD)
        self.remember(version)
        return self.publisher.publish([*trained.items(), *others.items()], version)

    def remember(self, version: int) -> None:
        self.states[version] = {k: v.detach().clone() for k, v in self.policy.model.state_dict().items()}

    def mode(self, **changes: Any) -> None:
        """Change what the running engine does at its next update."""
        self.engine.settings = dataclasses.replace(self.engine.settings, **changes)

    def num_layered_updates(self) -> int:
        """Updates that the engine loaded layer by layer."""
        return self.runner.run(self.engine._running().collective_rpc("num_layered_updates"))[0]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    torch.manual_seed(0)
    folder = with_a_head_of_its_own(random_policy(tmp_path_factory.mktemp("policy")))
    policy = load_policy(folder)
    chat = ChatFormat.from_policy(policy.tokenizer, policy.model_type)
    banned = banned_token_ids(policy.tokenizer)
    publisher = SharedMemoryPublisher(f"oracle-{tmp_path_factory.getbasetemp().name}")
    engine = VllmEngine(settings(folder, banned, policy))
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_settings, "WORKER_EXTENSION", "tests.e2e.engine_probe.CountsReloads")
        runner.run(engine.start())
        lab = Lab(policy, chat, banned, engine, publisher, runner, {}, folder)
        lab.remember(0)
        yield lab
        engine.shutdown()
    publisher.close()


def test_engine_and_learner_agree_over_64_episodes_and_5_updates_in_flight(lab: Lab) -> None:
    lab.mode(recompute_on_update=True)
    episodes, turns = lab.runner.run(play_with_updates(lab))
    updated_within_a_turn = sum(len(set(t.completion.versions.tolist())) > 1 for played in turns for t in played)
    gaps = learner_gaps(lab, episodes)
    compared = np.concatenate(gaps)
    assert len(episodes) == NUM_EPISODES
    assert {int(v) for e in episodes for v in e.versions[e.loss_mask]} == set(lab.states)
    assert updated_within_a_turn >= NUM_UPDATES, "the updates met no turn half-way"
    assert len(compared) == sum(e.num_sampled for e in episodes), "every sampled token is compared"
    assert compared.max() <= LEARNER_BOUND, f"{(compared > LEARNER_BOUND).sum()} of {len(compared)} tokens differ"


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_engine_and_learner_agree_on_other_families(model_type: str, tmp_path: Path) -> None:
    """On what they place and see for themselves: positions in three axes, windows, features of several depths."""
    lab = other_family(model_type, tmp_path)
    with lab.runner:
        try:
            lab.runner.run(lab.engine.start())
            episodes = lab.runner.run(play_undisturbed(lab, num_episodes=4, num_turns=2))
        finally:
            lab.engine.shutdown()
    gaps = np.concatenate(learner_gaps(lab, episodes))
    assert all(len(e.images) == 2 for e in episodes)
    assert len(gaps) == sum(e.num_sampled for e in episodes) > 100
    assert gaps.max() <= LEARNER_BOUND, f"{(gaps > LEARNER_BOUND).sum()} of {len(gaps)} tokens differ"


def test_tokens_sampled_on_a_kept_cache_differ_from_the_learner_and_all_others_agree(lab: Lab) -> None:
    """What `recompute_on_update` buys: without it, tokens behind an update lean on the old version's cache."""
    lab.mode(recompute_on_update=False)
    first = max(lab.states)
    episodes, turns = lab.runner.run(play_with_updates(lab, num_episodes=32, num_updates=2))
    assert {int(v) for e in episodes for v in e.versions[e.loss_mask]} == {first, first + 1, first + 2}
    gaps = np.concatenate(learner_gaps(lab, episodes))
    crossing = np.concatenate([turn.crosses_an_update for played in turns for turn in played])
    assert gaps[~crossing].max() <= LEARNER_BOUND
    assert gaps[crossing].max() > 10 * LEARNER_BOUND


def test_an_engine_updated_in_place_equals_a_fresh_engine_on_the_same_weights(lab: Lab) -> None:
    """Tied embeddings, trained vision tower, a prompt and pictures that the engine has cached under older weights."""
    assert lab.policy.model.config.text_config.tie_word_embeddings
    prompts = repeated_prompts(lab)
    before = lab.runner.run(greedy(lab.engine, prompts))
    lab.runner.run(lab.engine.load_version(lab.restep()))
    updated = lab.runner.run(greedy(lab.engine, prompts))
    again = lab.runner.run(greedy(lab.engine, prompts))
    fresh = lab.runner.run(fresh_engine_answers(lab, prompts))
    assert worst_gap(before, updated) > 100 * FRESH_BOUND, "the update changed nothing"
    assert [c.token_ids for c in updated] == [c.token_ids for c in fresh]
    assert worst_gap(updated, fresh) <= FRESH_BOUND
    assert worst_gap(again, fresh) <= FRESH_BOUND, "a cached prefix differs"


def test_pictures_encoded_by_an_older_vision_tower_would_show(lab: Lab) -> None:
    """The remedy is `reset_encoder_cache`; without it the same pictures keep their old features."""
    prompts = repeated_prompts(lab)
    lab.runner.run(greedy(lab.engine, prompts))
    lab.mode(train_vision=False)
    manifest = lab.restep()
    lab.runner.run(lab.engine.load_version(manifest))
    stale = lab.runner.run(greedy(lab.engine, prompts))
    lab.mode(train_vision=True)
    lab.runner.run(lab.engine.load_version(manifest.model_copy(update={"version": manifest.version + 1})))
    lab.remember(manifest.version + 1)
    clean = lab.runner.run(greedy(lab.engine, prompts))
    assert worst_gap(stale, clean) > 100 * FRESH_BOUND


def test_prefixes_cached_by_an_older_version_would_show(lab: Lab) -> None:
    """The remedy is the salt; an engine that forgets it reuses the old version's keys and values."""
    prompts = repeated_prompts(lab)
    salted = lab.engine._engine_prompt
    lab.engine._engine_prompt = lambda prompt: {**salted(prompt), "cache_salt": "always-the-same"}  # type: ignore
    try:
        lab.runner.run(greedy(lab.engine, prompts))
        lab.runner.run(lab.engine.load_version(lab.restep()))
        stale = lab.runner.run(greedy(lab.engine, prompts))
    finally:
        lab.engine._engine_prompt = salted  # type: ignore[method-assign]
    clean = lab.runner.run(greedy(lab.engine, prompts))
    assert worst_gap(stale, clean) > 100 * FRESH_BOUND


def test_a_preempted_request_can_encode_its_cached_pictures_again(lab: Lab) -> None:
    """vLLM drops the pixels of pictures that a cached prefix covers, and dies when it needs them after all."""
    transcript = Transcript(lab.chat, TINY.image_side)
    transcript.begin("Think.", Observation(TASK.question * 40, (picture(5), picture(6))))
    prompt = transcript.prompt()

    async def preempt_in_mid_turn() -> list[Completion]:
        await lab.engine.generate(prompt, Sampling(0.0, 1))
        cached = lab.engine.stats().num_cached_tokens
        turns = [asyncio.create_task(lab.engine.generate(prompt, Sampling(TEMPERATURE, 400))) for _ in range(4)]
        await asyncio.sleep(0.3)
        vllm = lab.engine._running()
        await vllm.pause_generation(mode="keep", clear_cache=False)
        await vllm.reset_prefix_cache(reset_running_requests=True)
        await vllm.reset_encoder_cache()
        await vllm.resume_generation()
        done = await asyncio.gather(*turns)
        assert lab.engine.stats().num_cached_tokens > cached, "no prefix was cached"
        return done

    assert all(turn.token_ids for turn in lab.runner.run(preempt_in_mid_turn()))
    assert lab.engine.healthy


def test_weights_that_do_not_fit_are_refused_and_the_old_version_serves_on_unchanged(lab: Lab) -> None:
    prompts = repeated_prompts(lab)
    version, before = lab.engine.version, lab.runner.run(greedy(lab.engine, prompts))
    name, parameter = next(iter(lab.policy.model.model.language_model.layers[-1].named_parameters()))
    broken = {n: torch.zeros_like(p) for n, p in lab.policy.model.named_parameters()}
    broken[next(n for n in broken if n.endswith(f"layers.{TINY.text_layers - 1}.{name}"))] = torch.zeros(3, 5)
    with pytest.raises(WeightUpdateError, match=f"version {version + 1}"):
        lab.runner.run(lab.engine.load_version(lab.publisher.publish(broken.items(), version + 1)))
    after = lab.runner.run(greedy(lab.engine, prompts))
    assert parameter.shape != (3, 5)
    assert lab.engine.version == version
    assert lab.engine.healthy
    assert worst_gap(before, after) == 0.0
    assert all((c.versions == version).all() for c in after)


def test_a_missing_file_is_refused_before_the_engine_pauses(lab: Lab) -> None:
    manifest = Manifest(version=lab.engine.version + 1, path="/dev/shm/none", num_tensors=1, num_bytes=1)
    num_updates = lab.engine.stats().num_updates
    with pytest.raises(WeightUpdateError, match="cannot be read"):
        lab.runner.run(lab.engine.load_version(manifest))
    assert lab.engine.stats().num_updates == num_updates


def test_an_engine_updated_layer_by_layer_with_a_frozen_vision_tower_equals_a_fresh_one(lab: Lab) -> None:
    """Tied embeddings again, and layers that get nothing. What no layer takes rules the other way out."""
    prompts = repeated_prompts(lab)
    lab.mode(train_vision=False)
    before, reloads = lab.runner.run(greedy(lab.engine, prompts)), lab.num_layered_updates()
    lab.runner.run(lab.engine.load_version(lab.restep(train_vision=False, **NO_LAYERS_OWN)))
    updated = lab.runner.run(greedy(lab.engine, prompts))
    lab.mode(train_vision=True)
    fresh = lab.runner.run(fresh_engine_answers(lab, prompts))
    assert lab.num_layered_updates() == reloads + 1
    assert worst_gap(before, updated) > 100 * FRESH_BOUND, "the update changed nothing"
    assert [c.token_ids for c in updated] == [c.token_ids for c in fresh]
    assert worst_gap(updated, fresh) <= FRESH_BOUND


def other_family(model_type: str, folder: Path) -> Lab:
    """A random policy of that family, its engine not yet started, and nothing to publish with."""
    policy = load_policy(save_random_policy(model_type, folder, head_dim=32))
    banned = banned_token_ids(policy.tokenizer)
    chat = ChatFormat.from_policy(policy.tokenizer, policy.model_type)
    engine = VllmEngine(dataclasses.replace(settings(folder, banned, policy), max_num_seqs=8, max_model_len=512))
    lab = Lab(policy, chat, banned, engine, SharedMemoryPublisher("unused"), asyncio.Runner(), {}, folder)
    lab.remember(0)
    return lab


def settings(folder: Path, banned: tuple[int, ...], policy: Policy) -> EngineSettings:
    return EngineSettings(
        model=folder, banned=banned, max_num_seqs=64, kv_cache_mib=256, max_model_len=768, max_images=8,
        processor_kwargs=policy.family.processor_kwargs,
    )  # fmt: skip


def with_a_head_of_its_own(folder: Path) -> Path:
    """Many published checkpoints hold the tied head a second time; vLLM then takes the two for untied, at first."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = next(t for name, t in tensors.items() if name.endswith("embed_tokens.weight")).clone()
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def picture(seed: int) -> MedImage:
    """[112, 112] with large structures, as no two seeds share them."""
    coarse = np.random.default_rng(seed).random((8, 8))
    return MedImage(np.kron(coarse, np.ones((14, 14))).astype(np.float32), "CT")


async def play_with_updates(
    lab: Lab, num_episodes: int = NUM_EPISODES, num_updates: int = NUM_UPDATES
) -> tuple[list[Episode], list[list[Sampled]]]:
    """A quarter of the episodes at a time, and updates spread over them, each after so many turns."""
    turns: list[list[Sampled]] = [[] for _ in range(num_episodes)]
    slots = asyncio.Semaphore(num_episodes // 4)
    async with asyncio.TaskGroup() as tasks:
        playing = [tasks.create_task(play(lab, i, turns[i], slots)) for i in range(num_episodes)]
        for update in range(1, num_updates + 1):
            manifest = lab.restep()
            while sum(map(len, turns)) < update * num_episodes * NUM_TURNS // (num_updates + 1):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            # Turns have begun by now: let them sample a few tokens under the old version.
            await asyncio.sleep(0.1)
            await lab.engine.load_version(manifest)
    return [episode.result() for episode in playing], turns


async def play_undisturbed(lab: Lab, num_episodes: int, num_turns: int) -> list[Episode]:
    slots = asyncio.Semaphore(num_episodes)
    return await asyncio.gather(*(play(lab, i, [], slots, num_turns) for i in range(num_episodes)))


async def play(lab: Lab, number: int, turns: list[Sampled], slots: asyncio.Semaphore, num_turns: int = NUM_TURNS) -> Episode:
    """Eight episodes share a picture, as a group does; each turn is followed by a picture of its own."""
    async with slots:
        transcript = Transcript(lab.chat, TINY.image_side)
        transcript.begin("Think, then answer.", Observation(TASK.question, (picture(number // 8),)))
        for turn in range(num_turns):
            version = lab.engine.version
            completion = await lab.engine.generate(transcript.prompt(), Sampling(TEMPERATURE, TURN_TOKENS))
            transcript.append(completion)
            turns.append(Sampled(version, completion))
            if turn < num_turns - 1:
                transcript.observe(Observation(f"image {turn + 1} shows this", (picture(100 + 10 * number + turn),)))
        return transcript.episode(task=TASK, status=EpisodeStatus.TRUNCATED, turns=[], answer=None)


def learner_gaps(lab: Lab, episodes: list[Episode]) -> list[np.ndarray]:
    """Per episode [sampled tokens]: |engine's - learner's| log-prob, the learner holding the token's version."""
    gaps = [np.full(len(e.token_ids), np.nan) for e in episodes]
    for version in sorted({int(v) for e in episodes for v in e.versions[e.loss_mask]}):
        lab.policy.model.load_state_dict(lab.states[version])
        concerned = [i for i, e in enumerate(episodes) if (e.versions == version).any()]
        chosen = [episodes[i] for i in concerned]
        for part in split_microbatches(chosen, lab.policy, 4096):
            batch = build_batch([chosen[k] for k in part], lab.policy)
            with torch.no_grad():
                learner = token_logprobs(lab.policy, batch, TEMPERATURE, lab.banned).numpy()
            for row, k in zip(learner, part, strict=True):
                episode, gap = chosen[k], gaps[concerned[k]]
                here = episode.loss_mask & (episode.versions == version)
                gap[here] = np.abs(row[: len(gap)] - episode.logprobs)[here]
    lab.policy.model.load_state_dict(lab.states[max(lab.states)])
    return [gap[e.loss_mask] for e, gap in zip(episodes, gaps, strict=True)]


def repeated_prompts(lab: Lab) -> list[Prompt]:
    """The same at each call: one picture, two pictures, and the two of a tool's turn behind a longer text."""
    prompts = []
    for images in ((1,), (1, 2), (2, 1)):
        transcript = Transcript(lab.chat, TINY.image_side)
        pictures = tuple(picture(i) for i in images)
        transcript.begin("Compare the regions. " * 8, Observation(TASK.question, pictures))
        prompts.append(transcript.prompt())
    return prompts


async def greedy(engine: VllmEngine, prompts: list[Prompt]) -> list[Completion]:
    return [await engine.generate(prompt, Sampling(0.0, 16)) for prompt in prompts]


async def fresh_engine_answers(lab: Lab, prompts: list[Prompt]) -> list[Completion]:
    folder = lab.folder.with_name("fresh")
    save_policy_folder(lab.policy.model, build_tiny_processor(lab.policy.tokenizer), folder)
    engine = VllmEngine(settings(folder, lab.banned, lab.policy))
    try:
        await engine.start()
        return await greedy(engine, prompts)
    finally:
        engine.shutdown()


def worst_gap(left: list[Completion], right: list[Completion]) -> float:
    """Over the tokens up to the first that differs (that one included: then the log-probs differ too)."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        same = np.asarray([x == y for x, y in zip(a.token_ids, b.token_ids, strict=False)])
        end = int(np.argmin(same)) + 1 if not same.all() else len(same)
        worst = max(worst, float(np.abs(a.logprobs[:end] - b.logprobs[:end]).max()))
    return worst
