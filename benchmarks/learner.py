"""What a learner step costs, what sharing and packing save of it, and how far it is from the bare products:

    python benchmarks/learner.py --json learner.json [--num-groups 16] [--group-size 8] [--num-repeats 5] [--fp32]

The episodes are of the built-in bench: the scripted expert plays every task `group-size` times with the real tools in
this process. The policy is the shipped one. A round runs every arm in turn, step and floors several times, so that a
ratio compares neighbours in time; figures are medians over rounds. Nothing of the shipped code is switched off: the
arms without sharing replace one function. The process has the environment of a run's learner, above all its
allocator's: the arms without sharing free gigabytes, and with glibc's defaults the arms behind them would pay for new
pages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from medvista_ray.config import BenchConfig, PolicyConfig, TrainConfig
from medvista_ray.envs.episode import MedEnv
from medvista_ray.main_job import actor_environment
from medvista_ray.models import batching
from medvista_ray.models.attention import attention_of
from medvista_ray.models.batching import Batch, build_batch, split_microbatches
from medvista_ray.models.logprobs import scored_places
from medvista_ray.models.packing import pack
from medvista_ray.models.policy import Picture, Policy, load_policy, resolve_policy
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.scripted import run_scripted
from medvista_ray.tasks.bench.expert import make_expert
from medvista_ray.tasks.bench.source import MedVistaBench
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import Episode, Group, Split, Task
from trainers.grpo import GrpoTrainer

TOOLS = ("zoom_in", "segment_medical", "measure", "search_text")
TIMEOUT_S = 120.0
CLOSE = ("floor_eager", "shared", "floor_sdpa")
NUM_TURNS = 3


async def play_group(
    number: int, task: Task, bench: MedVistaBench, client: LocalToolClient, policy: Policy, size: int, config: TrainConfig
) -> Group:
    """`size` plays of one task, each with a seed of its own; rewards alternate, so that every episode is trained."""
    chat = ChatFormat.from_policy(policy.tokenizer, policy.model_type)
    episodes: list[Episode] = []
    for seed in range(size):
        env = MedEnv(client, bench.open, config.rollout.max_calls)
        expert = make_expert(task, seed, config.expert.jitter)
        side = config.policy.image_side
        episode = await run_scripted(task, env, chat, expert, policy.expand, config.rollout, side)
        episode.reward = float(seed % 2)
        episodes.append(episode)
    return Group(id=number, episodes=episodes, version_admitted=0)


def play(num_groups: int, size: int, policy: Policy, config: TrainConfig) -> list[Group]:
    """Groups of the bench's core families in turn."""
    bench = MedVistaBench(BenchConfig(num_train=num_groups, num_validation=1, num_test=1))
    client = LocalToolClient(TOOLS, timeout_s=TIMEOUT_S)
    tasks = bench.tasks(Split.TRAIN)
    return [asyncio.run(play_group(i, task, bench, client, policy, size, config)) for i, task in enumerate(tasks)]


def every_picture_its_own(images: Sequence[Picture]) -> tuple[list[Picture], list[int]]:
    """In place of `share_images`."""
    return list(images), list(range(len(images)))


class Bare:
    """The floor: a forward and a backward pass over as many tokens, pictures and scored places as a step has, and no more.

    Dense rows of the episodes' mean length, plain causal attention (the faster of transformers' two), the pictures' features
    among the embeddings, logits at as many places as tokens were sampled behind, cross entropy. No padding, sharing, sampling
    mask, ratio, entropy, metrics, picture preprocessing, clip or optimiser.
    """

    def __init__(self, policy: Policy, trainer: GrpoTrainer, batches: Sequence[Batch], row_length: int) -> None:
        self.policy, self.trainer, self.row_length = policy, trainer, row_length
        self.inputs = [(b.pixels, len(b.packing.source), len(scored_places(b)[0])) for b in batches]

    def run(self, attention: str) -> None:
        """One pass over all micro-batches."""
        for pixels, num_tokens, num_scored in self.inputs:
            with self.trainer.accelerator.autocast():
                loss = self._loss(pixels, num_tokens, num_scored, attention)
            loss.backward()
        self.trainer.optimizer.zero_grad(set_to_none=True)

    def _loss(self, pixels: dict[str, torch.Tensor], num_tokens: int, num_scored: int, attention: str) -> torch.Tensor:
        trunk, head = self.policy.model.model, self.policy.model.lm_head
        num_rows = max(1, round(num_tokens / self.row_length))
        shape = (num_rows, -(-num_tokens // num_rows))
        ids = torch.randint(100, 2000, shape)
        with attention_of(trunk.vision_tower, "eager"):
            features = torch.cat(list(self.policy.model.get_image_features(**pixels, return_dict=True).pooler_output))
        embedded = trunk.language_model.embed_tokens(ids).flatten(0, 1)
        places = torch.linspace(0, len(embedded) - 1, len(features)).long()
        embedded = embedded.index_copy(0, places, features.to(embedded.dtype)).view(*shape, -1)
        with attention_of(trunk.language_model, attention):
            states = trunk.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state.flatten(0, 1)
        scored = torch.linspace(0, len(states) - 1, num_scored).long()
        return torch.nn.functional.cross_entropy(head(states[scored]).float(), ids.flatten()[scored])


def plain_loss(policy: Policy, episodes: Sequence[Episode]) -> torch.Tensor:
    """A padded rectangle through the model's own forward, every picture encoded at every appearance."""
    length = max(len(episode.token_ids) for episode in episodes)
    ids = torch.full((len(episodes), length), policy.padding_id)
    mask, sampled = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, episode in enumerate(episodes):
        size = len(episode.token_ids)
        ids[row, :size] = torch.from_numpy(episode.token_ids).long()
        mask[row, :size] = 1
        sampled[row, :size] = torch.from_numpy(episode.loss_mask)
    pixels = policy.pixel_inputs([image for episode in episodes for image in episode.images])
    states = policy.model.model(input_ids=ids, attention_mask=mask, use_cache=False, **pixels).last_hidden_state
    logits = policy.model.lm_head(states[:, :-1][sampled[:, 1:]]).float()
    return torch.nn.functional.cross_entropy(logits, ids[sampled])


def plain_step(policy: Policy, trainer: GrpoTrainer, episodes: Sequence[Episode], budget: int) -> None:
    """The same episodes without any sharing, sorted by length into padded micro-batches of `budget` tokens."""
    ordered = sorted(episodes, key=lambda episode: -len(episode.token_ids))
    while ordered:
        num_rows = max(1, budget // len(ordered[0].token_ids))
        rows, ordered = ordered[:num_rows], ordered[num_rows:]
        with trainer.accelerator.autocast():
            loss = plain_loss(policy, rows)
        loss.backward()
    trainer._apply(0.0)


def packed_apart(keys: Sequence[Any]) -> Any:
    """In place of `pack`: no history is shared."""
    return pack(keys, [[index] for index in range(len(keys))])


@contextmanager
def nothing_shared() -> Generator[None]:
    """Every episode laid out whole, every picture encoded at every appearance; still no padding."""
    with REPLACED["pictures_apart"](), REPLACED["prefixes_apart"]():
        yield


REPLACED: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "shared": nullcontext,
    "pictures_apart": lambda: patch.object(batching, "share_images", every_picture_its_own),
    "prefixes_apart": lambda: patch.object(batching, "pack", packed_apart),
    "nothing_shared": nothing_shared,
}
"""Arms of the shipped step: what each replaces."""


class Bench:
    """The arms on one batch of groups."""

    def __init__(self, groups: Sequence[Group], policy: Policy, config: TrainConfig) -> None:
        self.groups, self.policy, self.budget = groups, policy, config.grpo.tokens_per_microbatch
        self.trainer = GrpoTrainer(policy, config)
        # With one thread the processor's time: what else the machine does then hardly enters.
        self.clock = time.process_time if config.learner.num_threads == 1 else time.perf_counter
        self.episodes = [episode for group in groups for episode in group.episodes]
        self.batches = self.micro_batches()
        self.num_tokens = sum(len(episode.token_ids) for episode in self.episodes)
        self.bare = Bare(policy, self.trainer, self.batches, round(self.num_tokens / len(self.episodes)))

    def micro_batches(self) -> list[Batch]:
        """As a step makes them."""
        rows = split_microbatches(self.episodes, self.policy, self.budget)
        return [build_batch([self.episodes[i] for i in part], self.policy) for part in rows]

    def run(self, arm: str) -> None:
        """One pass of `arm`."""
        if arm.startswith("floor_"):
            return self.bare.run(arm.removeprefix("floor_"))
        if arm == "plain":
            return plain_step(self.policy, self.trainer, self.episodes, self.budget)
        with REPLACED[arm]():
            self.trainer.step(self.groups)

    def rounds(self, num_repeats: int) -> dict[str, list[float]]:
        """Seconds of each arm in each round, after one round that is not counted.

        Step and floors take turns NUM_TURNS times, of which the median counts: they are to be compared to a tenth, and a
        machine's speed may change within seconds.
        """
        slow = (*(arm for arm in REPLACED if arm != "shared"), "plain")
        seconds: dict[str, list[float]] = {arm: [] for arm in (*CLOSE, *slow)}
        for repeat in range(num_repeats + 1):
            turns = [[self.timed(arm) for arm in CLOSE] for _ in range(NUM_TURNS)]
            taken = [median(turn) for turn in zip(*turns, strict=True)] + [self.timed(arm) for arm in slow]
            if repeat:
                for arm, value in zip(seconds, taken, strict=True):
                    seconds[arm].append(value)
        return seconds

    def timed(self, arm: str) -> float:
        """Seconds of one pass."""
        start = self.clock()
        self.run(arm)
        return self.clock() - start

    def shapes(self) -> dict[str, float]:
        """What the batch is made of, and which share of the places that are computed is padding."""
        packed = sum(len(set(batch.packing.path.tolist())) for batch in self.batches)
        places = sum(len(batch.packing.source) for batch in self.batches)
        rectangle = sum(batch.token_ids.numel() for batch in self.batches)
        return {
            "num_episodes": len(self.episodes),
            "num_tokens": self.num_tokens,
            "num_packed_tokens": packed,
            "num_trained_tokens": sum(episode.num_sampled for episode in self.episodes),
            "num_micro_batches": len(self.batches),
            "images_per_group": sum(len(episode.images) for episode in self.episodes) / len(self.groups),
            "distinct_images_per_group": sum(len(batch.pixels["pixel_values"]) for batch in self.batches) / len(self.groups),
            "padding_waste": 1 - packed / places,
            "padding_waste_of_rectangles": 1 - self.num_tokens / rectangle,
        }


def figures(bench: Bench, num_repeats: int) -> dict[str, Any]:
    """Medians; ratios are medians of the rounds' ratios."""
    seconds = bench.rounds(num_repeats)
    floor = [min(pair) for pair in zip(seconds.pop("floor_eager"), seconds.pop("floor_sdpa"), strict=True)]
    ours = seconds["shared"]

    def over(taken: Sequence[float], base: Sequence[float]) -> float:
        return round(median(a / b for a, b in zip(taken, base, strict=True)), 3)

    return {
        "image_sharing_speedup": over(seconds["nothing_shared"], ours),
        "encoding_alone_speedup": over(seconds["pictures_apart"], ours),
        "prefix_sharing_speedup": over(seconds["prefixes_apart"], ours),
        "over_plain_speedup": over(seconds["plain"], ours),
        "over_floor": over(ours, floor),
        **{name: round(value, 4) for name, value in bench.shapes().items()},
        "tokens_per_s": {arm: round(bench.num_tokens / median(taken)) for arm, taken in seconds.items()},
        "step_s": {arm: round(median(taken), 3) for arm, taken in (seconds | {"floor": floor}).items()},
        "seconds": {arm: [round(value, 3) for value in taken] for arm, taken in (seconds | {"floor": floor}).items()},
    }


def as_a_learner() -> None:
    """Start this program anew with a run's environment, which the allocator reads when a process starts."""
    wanted = actor_environment()
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def main() -> None:
    """Play, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--num-groups", type=int, default=16, help="groups of the step")
    parser.add_argument("--group-size", type=int, default=8, help="episodes of a group")
    parser.add_argument("--num-repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--freeze-vision", action="store_true", help="do not train the vision tower")
    arguments = parser.parse_args()
    as_a_learner()
    torch.manual_seed(0)
    config = TrainConfig.model_validate(
        {
            "learner": {"bf16": not arguments.fp32, "num_threads": arguments.threads},
            "policy": {"train_vision": not arguments.freeze_vision},
        }
    )
    policy = load_policy(resolve_policy(PolicyConfig()))
    groups = play(arguments.num_groups, arguments.group_size, policy, config)
    result = figures(Bench(groups, policy, config), arguments.num_repeats)
    result |= {
        "num_repeats": arguments.num_repeats,
        "clock": "processor time of one thread" if arguments.threads == 1 else "wall time",
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}",
    }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
