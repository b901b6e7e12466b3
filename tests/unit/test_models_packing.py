"""The packed layout: prefixes, and what each token may see."""

from __future__ import annotations

import numpy as np
import torch

from medvista_ray.models.attention import attend
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


def test_packed_attention_equals_causal_attention_of_each_episode_alone() -> None:
    rows = [keys(1, 2, 3, 4, 5, 6), keys(1, 2, 3, 7), keys(1, 2, 3, 4, 9), keys(20, 21, 22), keys(1, 2, 3, 7), keys(1, 2, 8)]
    packing = pack(rows)
    assert packing.num_new == (6, 1, 1, 3, 0, 1)
    generator = torch.Generator().manual_seed(0)
    num_tokens = len(packing.source)
    query = torch.randn(1, 4, num_tokens, 8, generator=generator)
    key, value = (torch.randn(1, 2, num_tokens, 8, generator=generator) for _ in range(2))
    got, _ = attend(torch.nn.Identity(), query, key, value, None, packing=packing, scaling=0.5)
    for index, row in enumerate(rows):
        places = packing.place[index, : len(row)]
        alone_query = query[0][:, places]
        alone_key, alone_value = (x[0][:, places].repeat_interleave(2, dim=0) for x in (key, value))
        scores = alone_query @ alone_key.transpose(1, 2) * 0.5
        scores.masked_fill_(~torch.ones(len(row), len(row), dtype=torch.bool).tril(), float("-inf"))
        want = (scores.softmax(-1) @ alone_value).transpose(0, 1)
        assert torch.allclose(got[0, places], want, atol=1e-6)


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
