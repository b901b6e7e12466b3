"""The engine at real sizes on one GPU: sampled tokens per second with pictures, and weight updates in flight.

    python benchmarks/gpu/engine.py --json engine.json [--shape internvl3-2b] [--num-requests 128]

The weights are random and written to `--work` first (16 GB for 8 B parameters in bf16). All requests are in flight at once,
in groups that share question and picture, as in a rollout; each samples up to `--num-sampled` tokens. Half-way through, a
new version of the text weights is published through shared memory and loaded; the pause is what the requests saw.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.gpu.device import device_facts, parse, parser
from benchmarks.gpu.shapes import SHAPES, build_policy, random_groups, save_weights
from benchmarks.harness import write_figures
from medvista_ray.models.policy import Policy, trainable_parameters
from medvista_ray.rollout.chat import banned_token_ids
from medvista_ray.rollout.engine import Prompt, Sampling
from medvista_ray.rollout.vllm_engine import VllmEngine
from medvista_ray.rollout.vllm_settings import EngineSettings
from medvista_ray.weights.transport import TRANSPORTS


def settings(policy: Policy, args: Namespace) -> EngineSettings:
    """As a run's, with room for all requests and no stop string: every request samples to its limit, but for chance."""
    return EngineSettings(
        model=policy.path,
        banned=banned_token_ids(policy.tokenizer),
        num_tokens=len(policy.tokenizer),
        stops=(),
        max_model_len=args.max_model_len,
        max_num_seqs=args.num_requests,
        kv_cache_mib=args.kv_cache_mib,
        max_images=2,
        processor_kwargs=policy.family.processor_kwargs,
        dtype=args.dtype,
        seed=args.seed,
        train_vision=False,
        cores="" if args.device == "cuda" else "0",
    )


def prompts(policy: Policy, args: Namespace) -> list[Prompt]:
    """One per request; those of a group are equal."""
    side, size = SHAPES[args.shape].image_side, args.group_size
    groups = random_groups(policy, side, -(-args.num_requests // size), 1, args.num_text * 2, 4, args.seed)
    made: list[Prompt] = []
    for group in groups:
        (episode,) = group.episodes
        length = int(episode.loss_mask.argmax())
        text = [int(token) for token in episode.token_ids[:length] if token not in _picture_ids(policy)]
        made += [Prompt([policy.image_token_id, *text], episode.images[:1])] * size
    return made[: args.num_requests]


def _picture_ids(policy: Policy) -> set[int]:
    vocabulary = policy.tokenizer.get_vocab()
    return {policy.image_token_id, *(vocabulary[name] for name in ("<img>", "</img>") if name in vocabulary)}


async def measure(args: Namespace) -> dict[str, Any]:
    """The figures of one shape."""
    policy = build_policy(args.shape, "cpu", getattr(torch, args.dtype), args.work / args.shape)
    save_weights(policy)
    publisher = TRANSPORTS.load("shared_memory")(f"gpu-{os.getpid()}")
    engine = VllmEngine(settings(policy, args))
    wanted, sampling = prompts(policy, args), Sampling(temperature=1.0, max_tokens=args.num_sampled)
    try:
        start = time.perf_counter()
        await engine.start()
        started_s = time.perf_counter() - start
        await engine.generate(wanted[0], sampling)
        quiet_s, num_tokens = await _round(engine, wanted, sampling)
        manifest = publisher.publish(trainable_parameters(policy, False).items(), 1)
        running = asyncio.create_task(_round(engine, wanted, sampling))
        await asyncio.sleep(quiet_s / 2)
        times = await engine.load_version(manifest)
        updated_s, num_updated = await running
        return {
            "start_s": started_s,
            "sampled_per_s": num_tokens / quiet_s,
            "sampled_per_s_with_update": num_updated / updated_s,
            "pause_s": times.pause_s,
            "update_s": times.update_s,
            "num_bytes": manifest.num_bytes,
            "num_requests": args.num_requests,
            "memory_gib": _memory_gib(args.device),
        }
    finally:
        engine.shutdown()
        publisher.close()


async def _round(engine: VllmEngine, wanted: list[Prompt], sampling: Sampling) -> tuple[float, int]:
    """Seconds and sampled tokens of all requests at once."""
    start = time.perf_counter()
    done = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in wanted))
    return time.perf_counter() - start, sum(len(completion.token_ids) for completion in done)


def _memory_gib(device: str) -> float | None:
    """Memory in use on the device, by whatever process."""
    if device != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def main(arguments: list[str] | None = None) -> int:
    """Measure; the JSON goes to --json and to the screen."""
    made = parser("Sampling and weight updates of an engine of real size with random weights.")
    made.add_argument("--num-requests", type=int, default=128)
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--num-text", type=int, default=200, help="tokens of a question (default: 200)")
    made.add_argument("--num-sampled", type=int, default=128)
    made.add_argument("--max-model-len", type=int, default=4096)
    made.add_argument("--kv-cache-mib", type=int, default=16384)
    args = parse(made, arguments)
    write_figures(args.json, asyncio.run(measure(args)) | device_facts(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
