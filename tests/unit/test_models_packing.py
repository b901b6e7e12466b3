"""The packed layout: prefixes, and what each token may see."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import torch

from medvista_ray.models.attention import attend
from medvista_ray.models.attention_blocks import PADDING_PER_PRODUCT, alike, blocks_of
from medvista_ray.models.packing import families_of, pack


def keys(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def shared(*rows: np.ndarray) -> list[int]:
    """How many places of each row an earlier one has."""
    packing = pack(rows)
    return [length - new for length, new in zip(packing.lengths, packing.num_new, strict=True)]


def test_a_row_shares_all_that_it_begins_with_in_common_with_any_earlier_one() -> None:
    assert shared(keys(1, 2, 3, 4), keys(1, 2, 9, 4)) == [0, 2]
    assert shared(keys(1, 2, 3, 4), keys(1, 2, 9, 4), keys(1, 2, 9, 5), keys(1, 2, 3, 4, 7)) == [0, 2, 3, 4]
    assert shared(keys(1, 2, 3), keys(1, 2, 3)) == [0, 3]
    assert shared(keys(1, 2, 3, 4, 5), keys(1, 2, 3)) == [0, 3]
    assert shared(keys(1), keys(2)) == [0, 0]


def test_no_row_branches_off_inside_a_picture() -> None:
    assert shared(keys(1, -1, -1, 5), keys(1, -2, -2, 5)) == [0, 1]
    assert shared(keys(1, -1, -1, 5, 6), keys(1, -1, -1, 5, 7)) == [0, 4]
    assert shared(keys(1, -1, -1), keys(1, -1, -1, -1, 7)) == [0, 1]


def test_rows_of_one_question_form_a_family_and_lone_rows_form_one_together() -> None:
    assert families_of(["a", "b", "a"]) == [[0, 2], [1]]
    assert families_of(["a", "b", "c"]) == [[0, 1, 2]]


def test_every_place_maps_to_a_packed_token_of_the_same_value_and_position() -> None:
    rng = np.random.default_rng(0)
    head = rng.integers(1, 9, 5)
    rows = [np.concatenate([head, rng.integers(10, 99, n)]).astype(np.int64) for n in (4, 1, 7)]
    rows += [rng.integers(100, 200, 6).astype(np.int64)]
    packing = pack(rows, [[0, 1, 2], [3]])
    width = packing.place.shape[1]
    flat = np.zeros((4, width), dtype=np.int64)
    for target, row in zip(flat, rows, strict=True):
        target[: len(row)] = row
    tokens = flat.reshape(-1)[packing.source.numpy()]
    for index, row in enumerate(rows):
        places = packing.place[index, : len(row)]
        assert tokens[places.numpy()].tolist() == row.tolist()
        assert (packing.source[places] % width).tolist() == list(range(len(row)))
    assert len(tokens) == 5 + 4 + 1 + 7 + 6


def attended_alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[length, heads, width] causal attention (scale 0.5) over one episode's packed tokens."""
    own_query = query[0][:, places]
    own_key, own_value = (x[0][:, places].repeat_interleave(2, dim=0) for x in (key, value))
    scores = own_query @ own_key.transpose(1, 2) * 0.5
    hidden = ~torch.ones(len(places), len(places), dtype=torch.bool).tril()
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ own_value).transpose(0, 1)


def random_heads(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query with four heads, key and value with two."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, heads, num_tokens, 8, generator=generator).requires_grad_() for heads in (4, 2, 2))


def test_packed_attention_equals_causal_attention_of_each_episode_alone() -> None:
    rows = [keys(1, 2, 3, 4, 5, 6), keys(1, 2, 3, 7), keys(1, 2, 3, 4, 9), keys(20, 21, 22), keys(1, 2, 3, 7), keys(1, 2, 8)]
    packing = pack(rows)
    assert packing.num_new == (6, 1, 1, 3, 0, 1)
    query, key, value = random_heads(len(packing.source))
    got, _ = attend(torch.nn.Identity(), query, key, value, None, packing=packing, scaling=0.5)
    for index, row in enumerate(rows):
        places = packing.place[index, : len(row)]
        assert torch.allclose(got[0, places], attended_alone(query, key, value, places), atol=1e-6)


def test_episodes_of_all_sizes_in_common_blocks_have_the_gradients_of_each_alone() -> None:
    rng = np.random.default_rng(0)
    heads = [rng.integers(1, 9, 90), rng.integers(1, 9, 7)]
    tails = [(heads[i % 2], rng.integers(10 + i, 99, n)) for i, n in enumerate((3, 80, 1, 35, 0, 60, 61, 2, 0, 8, 8, 120))]
    rows = [np.concatenate(parts).astype(np.int64) for parts in tails]
    packing = pack(rows)
    blocks = alike(packing.num_new, packing.lengths)
    assert 1 < len(blocks) < sum(n > 0 for n in packing.num_new), "some episodes share a block, not all"
    inputs = random_heads(len(packing.source))
    got, _ = attend(torch.nn.Identity(), *inputs, None, packing=packing, scaling=0.5)
    want = torch.zeros_like(got)
    for index, row in enumerate(rows):
        places = packing.place[index, : len(row)]
        want[0] = want[0].index_copy(0, places, attended_alone(*inputs, places))
    assert torch.allclose(got, want, atol=1e-6)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True) for x in (got, want))
    for our, their in zip(ours, theirs, strict=True):
        assert torch.allclose(our, their, atol=1e-5)


def test_a_block_holds_episodes_of_like_size_and_every_one_with_new_tokens_once() -> None:
    num_new, lengths = (464, 127, 0, 8, 128, 125, 8), (464, 464, 300, 464, 460, 463, 200)
    blocks = alike(num_new, lengths)
    assert sorted(index for block in blocks for index in block) == [0, 1, 3, 4, 5, 6]
    assert [0] in blocks
    assert [4, 1, 5] in blocks
    for block in blocks:
        assert num_new[block[0]] == max(num_new[index] for index in block)
        padded = num_new[block[0]] * max(lengths[index] for index in block) * len(block)
        real = sum(num_new[index] * lengths[index] for index in block)
        assert padded - real <= PADDING_PER_PRODUCT * (len(block) - 1)


def test_blocks_are_made_once_per_packing_and_go_with_it() -> None:
    packing = pack([keys(1, 2, 3), keys(1, 2, 4)])
    blocks = blocks_of(packing, 4, 2, torch.float32)
    assert blocks_of(packing, 4, 2, torch.float32) is blocks
    assert blocks_of(packing, 4, 2, torch.bfloat16).masks[0].dtype is torch.bfloat16
    gone = weakref.ref(blocks)
    del packing, blocks
    gc.collect()
    assert gone() is None


def test_under_autocast_gradients_of_a_shared_history_are_added_up_in_fp32() -> None:
    """As rotary positions leave it: query and key in fp32, value in bf16."""
    rows = [keys(1, 2, 3, 4, 5, 6), *(keys(1, 2, 3, 7, 10 + i) for i in range(40))]
    packing = pack(rows)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, len(packing.source), 8, generator=generator) for _ in range(3))
    key.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = attend(torch.nn.Identity(), query, key, value.bfloat16(), None, packing=packing, scaling=0.5)
    assert got.dtype is torch.bfloat16
    (gradient,) = torch.autograd.grad(got.float().square().sum(), key)
    of_shared = gradient[0][:, packing.place[0, :3]]
    assert not torch.equal(of_shared, of_shared.bfloat16().float()), "the sum has more digits than bf16"
    exact = key.detach().bfloat16().double().requires_grad_()
    wide_query, wide_value = query.bfloat16().double(), value.bfloat16().double()
    plain, _ = attend(torch.nn.Identity(), wide_query, exact, wide_value, None, packing=packing, scaling=0.5)
    (want,) = torch.autograd.grad(plain.square().sum(), exact)
    assert (gradient - want).abs().max() < 0.01 * want.abs().max()
