"""The learner's forward against a plain Hugging Face forward of one episode at a time."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from medvista_ray.models import attention
from medvista_ray.models import logprobs as logprobs_module
from medvista_ray.models.batching import Batch, build_batch
from medvista_ray.models.logprobs import sampled_logprobs, scored_places, token_logprobs
from medvista_ray.models.policy import Policy
from medvista_ray.models.recomputation import checkpoint_activations
from medvista_ray.types import Episode
from tests.unit.tiny_policies import MODEL_TYPES, picture, random_episode, random_policy

TEMPERATURE = 0.7
BANNED = (0, 1, 3, 4, 5)


@pytest.fixture(scope="module", params=MODEL_TYPES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return random_policy(request.param, tmp_path_factory.mktemp("policy"))


@pytest.fixture
def episodes(policy: Policy) -> list[Episode]:
    """Different lengths, several pictures, one shared, one repeated within an episode, and one text-only episode.

    Qwen's pictures differ in shape: a tall and a wide one of equally many tokens, and a square one of more.
    """
    sizes = [(56, 56)] * 3 if policy.model_type == "internvl" else [(96, 48), (48, 96), (64, 64)]
    shared, other, third = (picture(seed, *size) for seed, size in enumerate(sizes, 1))
    shown = [[shared, other, shared], [shared, third], [shared], []]
    return [random_episode(policy, pictures, seed) for seed, pictures in enumerate(shown)]


def plain_logprobs(policy: Policy, episode: Episode) -> torch.Tensor:
    """[L] by the model's own forward with every picture given, and a softmax over the whole allowed vocabulary."""
    ids = torch.from_numpy(episode.token_ids.astype(np.int64))[None]
    arguments = policy.pixel_inputs(episode.images) if episode.images else {}
    if "image_grid_thw" in arguments:
        arguments["mm_token_type_ids"] = (ids == policy.image_token_id).int()
    mask = torch.ones_like(ids)
    logits = policy.model(input_ids=ids, attention_mask=mask, use_cache=False, **arguments).logits[0].float()
    logits = logits / TEMPERATURE
    logits[:, list(BANNED)] = float("-inf")
    chosen = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
    return torch.cat([torch.zeros(1), chosen]).where(torch.from_numpy(episode.loss_mask), torch.zeros(()))


def gradients(policy: Policy, total: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.model.zero_grad(set_to_none=True)
    total.backward()
    return {name: w.grad.clone() for name, w in policy.model.named_parameters() if w.grad is not None}


def test_padded_rows_with_shared_pictures_equal_a_plain_forward(policy: Policy, episodes: list[Episode]) -> None:
    got = token_logprobs(policy, build_batch(episodes, policy), TEMPERATURE, BANNED)
    for row, episode in zip(got, episodes, strict=True):
        want = plain_logprobs(policy, episode)
        assert torch.allclose(row[: len(want)], want, atol=1e-5)
        assert not row[len(want) :].any()
        assert want.any()


def test_the_pictures_of_these_tests_tell_a_mix_up_of_grids(policy: Policy, episodes: list[Episode]) -> None:
    pictures = [*episodes[0].images[:2], episodes[1].images[1]]
    tall, wide, square = (policy.num_image_tokens(shown) for shown in pictures)
    assert tall == wide
    if policy.model_type != "internvl":
        assert square > tall
        assert len(policy.pixel_inputs(pictures)["image_grid_thw"].unique(dim=0)) == 3


def test_gradients_equal_those_of_a_plain_forward(policy: Policy, episodes: list[Episode]) -> None:
    got = gradients(policy, token_logprobs(policy, build_batch(episodes, policy), TEMPERATURE, BANNED).sum())
    want = gradients(policy, torch.stack([plain_logprobs(policy, e).sum() for e in episodes]).sum())
    assert got.keys() == want.keys()
    assert any("vis" in name and float(g.abs().max()) > 0.0 for name, g in got.items())
    for name, gradient in want.items():
        assert torch.allclose(got[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max()))), name


def test_each_distinct_picture_is_encoded_once(policy: Policy, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = build_batch(episodes, policy)
    encoded: list[int] = []
    encode = policy.model.get_image_features

    def count(**arguments: torch.Tensor) -> object:
        encoded.append(len(arguments.get("image_grid_thw", arguments["pixel_values"])))
        return encode(**arguments)

    monkeypatch.setattr(policy.model, "get_image_features", count)
    token_logprobs(policy, batch, TEMPERATURE, BANNED)
    assert encoded == [3]
    assert batch.image_index.tolist() == [0, 1, 0, 0, 2, 0]


def test_every_common_history_is_laid_down_once(policy: Policy, episodes: list[Episode]) -> None:
    batch = build_batch(episodes, policy)
    shared = [length - new for length, new in zip(batch.packing.lengths, batch.packing.num_new, strict=True)]
    assert shared[0] == 0
    assert min(shared[1:]) == 9
    # With one picture in common, it reaches past it.
    assert max(shared[1:3]) >= 9 + policy.num_image_tokens(episodes[0].images[0])
    assert build_batch(episodes[:3], policy).packed_images.tolist() == [0, 1, 0, 2]
    assert len(batch.packing.source) == sum(batch.packing.num_new)


def test_a_state_that_several_tokens_were_sampled_behind_is_scored_once(policy: Policy, episodes: list[Episode]) -> None:
    batch = build_batch([episodes[0], replace(episodes[0], logprobs=episodes[0].logprobs - 1.0), episodes[1]], policy)
    places, index = scored_places(batch)
    assert len(index) == int(batch.loss_mask.sum())
    assert len(places) <= len(index) - episodes[0].num_sampled
    twice = token_logprobs(policy, batch, TEMPERATURE, BANNED)
    assert torch.equal(twice[0], twice[1])
    assert twice[0].any()


def test_the_fused_attention_for_accelerators_gives_the_same(
    policy: Policy, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = build_batch(episodes, policy)
    want = token_logprobs(policy, batch, TEMPERATURE, BANNED)
    monkeypatch.setattr(attention, "_in_blocks", attention._one_by_one)
    assert torch.allclose(token_logprobs(policy, batch, TEMPERATURE, BANNED), want, atol=1e-5)


def test_the_forward_leaves_the_model_as_it_was(policy: Policy, episodes: list[Episode]) -> None:
    before = plain_logprobs(policy, episodes[0])
    token_logprobs(policy, build_batch(episodes, policy), TEMPERATURE, BANNED)
    assert torch.equal(plain_logprobs(policy, episodes[0]), before)


def test_pictures_matter_to_the_result(policy: Policy, episodes: list[Episode]) -> None:
    changed = replace(episodes[2], images=[255 - episodes[2].images[0]])
    before, after = (token_logprobs(policy, build_batch([e], policy), 1.0) for e in (episodes[2], changed))
    assert float((before - after).abs().max().detach()) > 1e-4


def test_chunks_of_rows_give_the_same_values_and_gradients(
    policy: Policy, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = build_batch(episodes, policy)
    whole = gradients(policy, token_logprobs(policy, batch, TEMPERATURE, BANNED).sum())
    monkeypatch.setattr(logprobs_module, "MAX_LOGITS", 7 * len(policy.tokenizer))
    chunked = gradients(policy, token_logprobs(policy, batch, TEMPERATURE, BANNED).sum())
    assert all(torch.allclose(chunked[name], gradient, atol=1e-5) for name, gradient in whole.items())


def test_checkpointed_activations_give_the_same_gradients_and_keep_less(policy: Policy, episodes: list[Episode]) -> None:
    def run(policy: Policy) -> tuple[dict[str, torch.Tensor], int]:
        """Gradients, and the bytes that the forward pass keeps for the backward pass."""
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total = token_logprobs(policy, build_batch(episodes, policy), TEMPERATURE, BANNED).sum()
        num_bytes = sum(kept.values())
        return gradients(policy, total), num_bytes

    want, all_bytes = run(policy)
    frugal = replace(policy, model=deepcopy(policy.model))
    checkpoint_activations(frugal)
    got, few_bytes = run(frugal)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], gradient) for name, gradient in want.items())
    assert few_bytes < 0.7 * all_bytes


def test_a_sampled_token_that_is_banned_has_no_probability_at_all(policy: Policy) -> None:
    batch = build_batch([random_episode(policy, [], 5)], policy)
    first = int(batch.token_ids[batch.loss_mask][0])
    sampled = sampled_logprobs(policy, batch, 1.0, [first])
    assert sampled.values[0].item() == float("-inf")
    assert bool(sampled.entropy.isfinite().all())


def test_banned_tokens_have_no_share_and_entropy_is_that_of_the_allowed(policy: Policy) -> None:
    episode = random_episode(policy, [], 5)
    batch = build_batch([episode], policy)
    vocabulary = len(policy.tokenizer)
    first = int(batch.loss_mask[0].nonzero()[0])
    allowed = [int(batch.token_ids[0, first]), 20, 30]
    banned = [token for token in range(vocabulary) if token not in allowed]
    chances = [_first_logprob(policy, batch, token, first, banned) for token in allowed]
    assert sum(np.exp(chances)) == pytest.approx(1.0, abs=1e-5)
    entropy = float(sampled_logprobs(policy, batch, 1.0, banned).entropy[0])
    assert entropy == pytest.approx(-sum(np.exp(c) * c for c in chances), abs=1e-5)


@torch.no_grad()
def _first_logprob(policy: Policy, batch: Batch, token: int, first: int, banned: list[int]) -> float:
    """Log-probability of `token` at the first sampled position."""
    ids = batch.token_ids.clone()
    ids[0, first] = token
    return float(token_logprobs(policy, replace(batch, token_ids=ids), 1.0, banned)[0, first])
