"""Loading, expansion, batching, and the tiny architecture on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from medvista_ray.config import PolicyConfig
from medvista_ray.errors import ConfigError, InvariantError, UserError
from medvista_ray.models.adapters import merged_weights
from medvista_ray.models.batching import build_batch, split_microbatches
from medvista_ray.models.policy import (
    Policy,
    load_inputs,
    load_policy,
    resolve_policy,
    trainable_parameters,
)
from medvista_ray.models.tiny_architecture import TINY, build_tiny_model, build_tiny_processor, save_policy_folder
from medvista_ray.types import Episode
from tests.unit.tiny_policies import MODEL_TYPES, SMALL, byte_tokenizer, picture, random_episode, random_policy, task


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    return {name: random_policy(name, tmp_path_factory.mktemp(name)) for name in MODEL_TYPES}


def test_the_tiny_policy_has_sixteen_tokens_per_picture_and_five_to_fifteen_million_weights() -> None:
    model = build_tiny_model(byte_tokenizer(), seed=0)
    assert TINY.tokens_per_image == 16
    assert 5e6 < sum(weight.numel() for weight in model.parameters()) < 15e6
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (build_tiny_model(byte_tokenizer(), seed, SMALL).lm_head.weight for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_half_precision_folder_loads_in_full_precision(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = build_tiny_model(tokenizer, 0, SMALL)
    save_policy_folder(model, build_tiny_processor(tokenizer, SMALL), tmp_path, torch.bfloat16)
    assert model.dtype == torch.float32
    loaded = load_policy(tmp_path).model
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16().float())
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).config.model_type == "internvl"


def test_internvl_expands_as_its_processor_does(policies: dict[str, Policy]) -> None:
    policy = policies["internvl"]
    processor = AutoProcessor.from_pretrained(policy.path)
    text, images = "a<IMG_CONTEXT>b<IMG_CONTEXT>", [picture(0), picture(1)]
    want = processor(text=[text], images=images, crop_to_patches=False, return_tensors="pt")
    plain = policy.tokenizer.encode(text, add_special_tokens=False)
    assert policy.expand(plain, images) == want["input_ids"][0].tolist()
    assert torch.equal(policy.pixel_inputs(images)["pixel_values"], want["pixel_values"])


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("side", [(64, 64), (96, 48)])
def test_qwen_expands_by_the_grid_of_its_picture_processor(
    policies: dict[str, Policy], model_type: str, side: tuple[int, int]
) -> None:
    policy = policies[model_type]
    image = picture(0, *side)
    grid = policy.pixel_inputs([image])["image_grid_thw"][0]
    features = int(grid.prod()) // 4
    expanded = policy.expand([7, policy.image_token_id, 8], [image])
    assert expanded == [7, *[policy.image_token_id] * features, 8]


def test_expansion_refuses_a_wrong_number_of_pictures(policies: dict[str, Policy]) -> None:
    with pytest.raises(InvariantError, match="1 placeholders for 0 pictures"):
        policies["internvl"].expand([policies["internvl"].image_token_id], [])


def test_an_unknown_architecture_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"bert.*internvl, qwen2_5_vl, qwen3_vl"):
        load_inputs(tmp_path)


def test_a_policy_path_without_a_model_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.path"):
        resolve_policy(PolicyConfig(path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"policy\.path"):
        resolve_policy(PolicyConfig(path="no/such-model-anywhere"))


def test_a_folder_resolves_to_itself(policies: dict[str, Policy]) -> None:
    path = policies["internvl"].path
    assert resolve_policy(PolicyConfig(path=str(path))) == path


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_freezing_vision_freezes_tower_and_connector_only(policies: dict[str, Policy], model_type: str) -> None:
    policy = policies[model_type]
    every, text = (trainable_parameters(policy, train_vision) for train_vision in (True, False))
    frozen = every.keys() - text.keys()
    assert frozen
    assert all("vis" in name or "projector" in name for name in frozen)
    assert all("language_model" in name for name in text)
    trainable_parameters(policy, True)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_with_frozen_vision_only_the_text_models_weights_are_published(policies: dict[str, Policy], model_type: str) -> None:
    policy = policies[model_type]
    sent = dict(merged_weights(policy, False))
    text = {name: weight for name, weight in policy.model.named_parameters() if ".language_model." in name}
    assert 0 < len(sent) < len(policy.model.state_dict())
    assert sent.keys() == text.keys()
    assert all(torch.equal(tensor, text[name]) for name, tensor in sent.items())
    trainable_parameters(policy, True)


def test_rows_are_padded_on_the_right_with_a_token_that_is_no_picture(policies: dict[str, Policy]) -> None:
    policy = policies["internvl"]
    short, long = random_episode(policy, [], 1), random_episode(policy, [picture(0), picture(1)], 2)
    batch = build_batch([short, long], policy)
    length = len(short.token_ids)
    assert batch.token_ids.shape == (2, len(long.token_ids))
    assert batch.token_ids[0, :length].tolist() == short.token_ids.tolist()
    assert set(batch.token_ids[0, length:].tolist()) == {policy.padding_id} != {policy.image_token_id}
    assert not batch.loss_mask[0, length:].any()
    assert int(batch.loss_mask.sum()) == short.num_sampled + long.num_sampled


def test_a_missing_picture_is_an_error_that_names_the_task(policies: dict[str, Policy]) -> None:
    policy = policies["internvl"]
    episode = replace(random_episode(policy, [picture(0)], 1), images=[])
    with pytest.raises(InvariantError, match=r"task-7.*4 image tokens, 0 picture features"):
        build_batch([episode], policy)


def test_a_sampled_placeholder_is_an_error(policies: dict[str, Policy]) -> None:
    policy = policies["internvl"]
    episode = random_episode(policy, [picture(0)], 1)
    episode.loss_mask[episode.token_ids == policy.image_token_id] = True
    with pytest.raises(InvariantError, match="sampled"):
        build_batch([episode], policy)


def _of_length(policy: Policy, length: int, pictures: list[np.ndarray], name: str = "q", head: int = 0) -> Episode:
    """The pictures, then text that no other name has, behind the first `head` tokens."""
    rng = np.random.default_rng(list(name.encode()))
    ids = np.concatenate([np.full(head, 7), rng.integers(10, 200, length - head)]).astype(np.int64)
    ids[head] = name.encode()[-1]
    num_features = sum(policy.num_image_tokens(image) for image in pictures)
    ids[:num_features] = policy.image_token_id
    episode = random_episode(policy, [], 0)
    mask = np.arange(length) >= max(1, length - 2)
    return replace(
        episode, task=task(name), token_ids=ids, images=pictures, loss_mask=mask, logprobs=np.zeros(length, np.float32)
    )


def test_micro_batches_keep_every_episode_whole_and_within_the_budget(policies: dict[str, Policy]) -> None:
    lengths = [10, 50, 20, 200, 45, 12, 30]
    episodes = [_of_length(policies["internvl"], length, [], f"q{i}") for i, length in enumerate(lengths)]
    batches = split_microbatches(episodes, policies["internvl"], tokens_per_microbatch=100)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    # Only the episode that exceeds the budget by itself is above it.
    assert [size for size in sizes if size > 100] == [200]
    assert len(batches) <= 4


def test_the_budget_counts_what_is_computed_so_shared_beginnings_once(policies: dict[str, Policy]) -> None:
    policy = policies["internvl"]
    episodes = [_of_length(policy, 60, [], f"q{i % 4}", head=50) for i in range(16)]
    batches = split_microbatches(episodes, policy, tokens_per_microbatch=90)
    assert [len(batch) for batch in batches] == [16]
    assert len(build_batch(episodes, policy).packing.source) == 50 + 4 * 10
    assert [len(batch) for batch in split_microbatches(episodes, policy, tokens_per_microbatch=89)] == [12, 4]


def test_micro_batches_never_exceed_the_budget_in_packed_tokens(policies: dict[str, Policy]) -> None:
    policy, rng = policies["internvl"], np.random.default_rng(3)
    episodes = [_of_length(policy, int(rng.integers(42, 90)), [], f"q{i // 3}", head=40) for i in range(30)]
    for budget in (100, 250, 1000):
        batches = split_microbatches(episodes, policy, tokens_per_microbatch=budget)
        assert sorted(index for batch in batches for index in batch) == list(range(30))
        assert max(len(build_batch([episodes[i] for i in batch], policy).packing.source) for batch in batches) <= budget


def test_episodes_of_one_question_stay_in_one_micro_batch(policies: dict[str, Policy]) -> None:
    names = ["a", "b", "a", "b", "c", "c"]
    episodes = [_of_length(policies["internvl"], 20 + i, [], name) for i, name in enumerate(names)]
    batches = split_microbatches(episodes, policies["internvl"], tokens_per_microbatch=50)
    assert [{names[i] for i in batch} for batch in batches] == [{"a", "b"}, {"c"}]


def test_micro_batches_bound_the_distinct_pictures(policies: dict[str, Policy]) -> None:
    policy, shared = policies["internvl"], picture(0)
    episodes = [_of_length(policy, 40, [shared, picture(i)]) for i in range(1, 7)]
    batches = split_microbatches(episodes, policy, tokens_per_microbatch=1000, max_images=3)
    assert [len(batch) for batch in batches] == [2, 2, 2]
