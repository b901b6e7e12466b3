"""Publishing the weights of a policy of real size from the device, by each transport that runs here.

    python benchmarks/gpu/transports.py --json transports.json [--shape internvl3-8b] [--only shared_memory ...]

Beside each stands the time to copy the same bytes once from the device to the host, which no transport through host memory
can beat. What a running engine takes for the other half is `engine.py`'s figure. A transport that cannot be made here
(several processes, another device) is named with its reason.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.gpu.device import device_facts, median_s, parse, parser, peak_memory_gib
from benchmarks.gpu.shapes import build_policy
from benchmarks.harness import write_figures
from medvista_ray.errors import MedVistaError
from medvista_ray.models.policy import trainable_parameters
from medvista_ray.weights.transport import TRANSPORTS


def measure(args: Namespace) -> dict[str, Any]:
    """The figures of one shape."""
    policy = build_policy(args.shape, args.device, getattr(torch, args.dtype), args.work / args.shape)
    weights = trainable_parameters(policy, args.train_vision)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights.values())
    copy_s = median_s(
        lambda: [weight.detach().to("cpu", copy=True) for weight in weights.values()], args.num_repeats, args.device
    )
    figures: dict[str, Any] = {"num_bytes": num_bytes, "num_tensors": len(weights), "copy_s": copy_s, "transports": {}}
    for name in args.only or TRANSPORTS.names():
        figures["transports"][name] = publish(name, weights, args) | {}
        seconds = figures["transports"][name].get("publish_s")
        if seconds is not None:
            figures["transports"][name]["over_copy"] = seconds / copy_s
    return figures | {"peak_memory_gib": peak_memory_gib(args.device)}


def publish(name: str, weights: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Seconds of one publication, or why there is none."""
    versions = count(1)
    try:
        publisher = TRANSPORTS.load(name)(f"gpu-{os.getpid()}")
    except (MedVistaError, TypeError) as error:  # TypeError: it needs a partner, as the object store does
        return {"not_run": str(error)}
    try:
        seconds = median_s(lambda: publisher.publish(weights.items(), next(versions)), args.num_repeats, args.device)
        return {"publish_s": seconds}
    except MedVistaError as error:
        return {"not_run": str(error)}
    finally:
        publisher.close()


def main(arguments: list[str] | None = None) -> int:
    """Measure; the JSON goes to --json and to the screen."""
    made = parser("Publication of a real policy's weights.")
    made.add_argument("--only", nargs="+", choices=TRANSPORTS.names(), help="default: all")
    made.add_argument("--train-vision", action="store_true", help="the vision tower travels too")
    args = parse(made, arguments)
    write_figures(args.json, measure(args) | device_facts(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
