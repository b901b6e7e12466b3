"""The benchmarks for a GPU: sizes of the published models, and the same functions on a processor with small shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.gpu import learner, transports
from benchmarks.gpu.shapes import QWEN_TOKENS, SHAPES, build_model, build_policy, random_groups
from medvista_ray.models.policy import TINY_FOLDER, Policy

SMALL = ("small-internvl", "small-qwen2.5-vl")


def policy_of(name: str, folder: Path) -> Policy:
    return build_policy(name, "cpu", torch.float32, folder)


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.num_parameters])
def test_a_real_shape_has_as_many_parameters_as_were_published(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_FOLDER)
    tokenizer.add_tokens(list(QWEN_TOKENS))
    with torch.device("meta"):
        model = build_model(SHAPES[name], tokenizer)
    count = sum(weight.numel() for weight in model.parameters())
    assert count == pytest.approx(SHAPES[name].num_parameters, rel=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_random_groups_are_episodes_that_a_learner_takes(name: str, tmp_path: Path) -> None:
    policy = policy_of(name, tmp_path)
    groups = random_groups(policy, SHAPES[name].image_side, 2, 3, 20, 8)
    assert [len(group.episodes) for group in groups] == [3, 3]
    for group in groups:
        for episode in group.episodes:
            features = sum(policy.num_image_tokens(image) for image in episode.images)
            assert int((episode.token_ids == policy.image_token_id).sum()) == features
            assert episode.num_sampled == 8
        assert len({episode.images[0].tobytes() for episode in group.episodes}) == 1
        assert len({episode.images[1].tobytes() for episode in group.episodes}) == 3


@pytest.mark.parametrize("name", SMALL)
def test_the_learners_benchmark_runs_on_a_processor(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    options = ["--device", "cpu", "--dtype", "float32", "--num-repeats", "1", "--num-groups", "1", "--group-size", "2"]
    options += ["--num-text", "12", "--num-sampled", "4", "--json", str(out), "--shape", name, "--work", str(tmp_path)]
    assert learner.main(options) == 0
    figures = json.loads(out.read_text())
    assert figures["step_s"] > 0
    assert figures["tflops"] > 0
    assert figures["mfu"] is figures["peak_memory_gib"] is figures["gpu"] is None
    assert figures["num_episodes"] == 2
    assert json.loads(capsys.readouterr().out) == figures


def test_the_flops_of_a_step_are_those_of_its_products(tmp_path: Path) -> None:
    """Against the products that torch itself counts in a forward and backward of the same tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    policy = policy_of("small-internvl", tmp_path)
    groups = random_groups(policy, 56, 1, 1, 24, 8)
    (episode,) = groups[0].episodes
    pixels: Any = policy.pixel_inputs(episode.images)["pixel_values"]
    ids = torch.from_numpy(episode.token_ids.astype(np.int64))[None]
    with FlopCounterMode(display=False) as counter:
        policy.model(input_ids=ids, pixel_values=pixels).logits.sum().backward()
    counted = learner.step_flops(policy, groups, train_vision=True)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_the_transports_benchmark_names_what_does_not_run(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--device", "cpu", "--num-repeats", "1", "--json", str(out), "--shape", SMALL[0], "--work", str(tmp_path)]
    assert transports.main([*options, "--only", "shared_memory"]) == 0
    figures = json.loads(out.read_text())
    assert figures["transports"]["shared_memory"]["publish_s"] > 0
    assert figures["num_bytes"] > 10_000


def test_without_a_gpu_the_message_says_what_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        learner.main(["--json", "never.json"])
    assert ended.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err
