"""Weights written straight into a model's memory: what has a plan and what has none, and layers that are repacked.

The models are toys; an engine's own is held against a fresh engine in test_oracles_engine.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.nn.functional import linear

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

Tensors = dict[str, torch.Tensor]
ROWS, LARGE, SMALL = 16, (1536, 256), (512, 256)
"""Rows of an input, and [outputs, inputs] of a layer that is repacked and of one that is not."""


class Fused(torch.nn.Module):
    """Two linear layers of a checkpoint in one, as vLLM keeps them."""

    def __init__(self, size: tuple[int, int], bias: bool = False) -> None:
        super().__init__()
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod

        self.quant_method: Any = UnquantizedLinearMethod()
        self.weight = Parameter(torch.zeros(size), requires_grad=False)
        self.bias = Parameter(torch.zeros(size[0]), requires_grad=False) if bias else None
        self.weight.weight_loader = self.load_half  # type: ignore[attr-defined]

    def load_half(self, parameter: torch.Tensor, tensor: torch.Tensor, half: int) -> None:
        part = parameter.data.narrow(0, half * parameter.shape[0] // 2, parameter.shape[0] // 2)
        assert part.shape == tensor.shape
        part.copy_(tensor)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.quant_method.apply(self, rows, self.bias)


def load_whole(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
    assert parameter.shape == tensor.shape
    parameter.data.copy_(tensor)


class Toy(torch.nn.Module):
    """One fused layer and a norm."""

    def __init__(self, size: tuple[int, int] = LARGE, bias: bool = False) -> None:
        super().__init__()
        from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

        from medvista_ray.weights import vllm_packing

        vllm_packing.install()
        self.fused = Fused(size, bias)
        self.norm = torch.nn.LayerNorm(size[0])
        record_metadata_for_reloading(self)
        self.fused.quant_method.process_weights_after_loading(self.fused)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            if name in ("gate", "up"):
                fused: Any = self.fused.weight
                fused.weight_loader(fused, tensor, ("gate", "up").index(name))
            else:
                getattr(parameters[name], "weight_loader", load_whole)(parameters[name], tensor)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fused(rows))


class Computing(Toy):
    """A loader that does more than copy."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights((name, tensor + 1 if name == "norm.weight" else tensor) for name, tensor in weights)


@pytest.mark.parametrize(("size", "packed"), [(LARGE, True), (SMALL, False)])
def test_an_updated_model_computes_what_the_weights_say_at_every_update(size: tuple[int, int], packed: bool) -> None:
    model = Toy(size, bias=True)
    in_place = loader(model)
    assert (model.fused.weight.numel() == 0) is packed
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    rows = torch.randn(ROWS, size[1])
    for seed in range(3):
        tensors = weights(size, seed) | {"fused.bias": torch.randn(size[0])}
        assert in_place.load(tensors)
        assert (model(rows) - expected(rows, tensors)).abs().max() < 1e-5
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before


def test_frozen_weights_keep_their_values() -> None:
    model = Toy(SMALL)
    in_place = loader(model)
    tensors = weights(SMALL, 0)
    assert in_place.load(tensors)
    assert in_place.load({"up": tensors["up"] + 1})
    rows = torch.randn(ROWS, SMALL[1])
    assert torch.equal(model(rows), expected(rows, tensors | {"up": tensors["up"] + 1}))


def test_half_a_repacked_layer_has_no_plan() -> None:
    """Its other half is nowhere any more."""
    assert refused(Toy(LARGE), {"up": torch.randn(LARGE[0] // 2, LARGE[1])})


def test_a_loader_that_computes_has_no_plan() -> None:
    assert refused(Computing(SMALL), weights(SMALL, 1))


def test_another_way_of_processing_has_no_plan() -> None:
    model = Toy(SMALL)
    model.fused.quant_method = type("Quantized", (type(model.fused.quant_method),), {})()
    assert refused(model, weights(SMALL, 1))


@pytest.mark.parametrize("name", ["gate", "norm.weight", "unknown"])
def test_tensors_that_do_not_fit_touch_nothing(name: str) -> None:
    assert refused(Toy(SMALL), weights(SMALL, 1) | {name: torch.randn(3, 5)})


def test_a_parameter_that_was_replaced_is_not_written_to_by_the_old_plan() -> None:
    model = Toy(SMALL)
    in_place = loader(model)
    assert in_place.load(weights(SMALL, 0))
    model.norm.weight = Parameter(torch.zeros(SMALL[0]))
    assert in_place.load(weights(SMALL, 1))
    assert torch.equal(model.norm.weight, weights(SMALL, 1)["norm.weight"])


@pytest.mark.parametrize("name", ["gate", "norm.weight"])
def test_an_update_layer_by_layer_that_failed_leaves_nothing_in_the_way(name: str) -> None:
    """vLLM leaves its own loaders behind, which take a tensor and do nothing with it."""
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    from medvista_ray.weights.vllm_transfer import abandon_unfinished_update

    model = Toy(SMALL, bias=True)
    initialize_layerwise_reload(model)
    with pytest.raises((AssertionError, RuntimeError)):
        model.load_weights((weights(SMALL, 0) | {name: torch.randn(3, 5)}).items())
    abandon_unfinished_update(model)
    tensors, rows = weights(SMALL, 1) | {"fused.bias": torch.randn(SMALL[0])}, torch.randn(ROWS, SMALL[1])
    assert loader(model).load(tensors)
    assert torch.equal(model(rows), expected(rows, tensors))


def test_other_shapes_and_types_are_planned_anew() -> None:
    model = Toy(SMALL)
    in_place = loader(model)
    assert in_place.load(weights(SMALL, 0))
    assert not in_place.load(weights(SMALL, 1) | {"gate": torch.randn(3, 5)})
    halves = {name: tensor.bfloat16() for name, tensor in weights(SMALL, 2).items()}
    assert in_place.load(halves)
    assert torch.equal(model.norm.weight, halves["norm.weight"].float())


def test_an_embedding_that_serves_as_a_head_multiplies_with_its_newest_weights() -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    from medvista_ray.weights.vllm_packing import dispatch

    embedding: Any = VocabParallelEmbedding.__new__(VocabParallelEmbedding)
    torch.nn.Module.__init__(embedding)
    embedding.weight = Parameter(torch.randn(LARGE), requires_grad=False)
    rows = torch.randn(ROWS, LARGE[1])
    for _ in range(2):
        embedding.weight.normal_()
        dispatch(embedding, remove_weight=False)
        for _ in range(2):
            found = embedding.cpu_linear(rows, embedding.weight, None)
            assert torch.allclose(found, linear(rows, embedding.weight), atol=1e-4)


def test_only_large_or_narrow_weights_are_repacked() -> None:
    from medvista_ray.weights.vllm_packing import is_small

    assert is_small(torch.empty(SMALL))
    assert not is_small(torch.empty(LARGE))
    assert not is_small(torch.empty(SMALL, dtype=torch.bfloat16))
    assert not is_small(torch.empty(SMALL, device="meta"))


def loader(model: torch.nn.Module) -> Any:
    from medvista_ray.weights.vllm_in_place import InPlace

    return InPlace(model)


def weights(size: tuple[int, int], seed: int) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    half = size[0] // 2, size[1]
    return {
        "gate": torch.randn(half, generator=random), "up": torch.randn(half, generator=random),
        "norm.weight": torch.randn(size[0], generator=random), "norm.bias": torch.randn(size[0], generator=random),
    }  # fmt: skip


def expected(rows: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    fused = linear(rows, torch.cat([tensors["gate"], tensors["up"]]), tensors.get("fused.bias"))
    return torch.nn.functional.layer_norm(fused, fused.shape[-1:], tensors["norm.weight"], tensors["norm.bias"])


def refused(model: torch.nn.Module, tensors: Tensors) -> bool:
    """Whether these have no plan, the model being the same as before, to the object."""
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    loaded = loader(model).load(tensors)
    after = model.state_dict(keep_vars=True)
    same = all(id(after[name]) == old and torch.equal(after[name], value) for name, (old, value) in before.items())
    return not loaded and same and after.keys() == before.keys()
