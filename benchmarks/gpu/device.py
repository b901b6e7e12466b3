"""What the scripts of this folder share: the device, its peak, memory, medians of repeats, the command line."""

from __future__ import annotations

import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.shapes import SHAPES
from benchmarks.harness import machine

PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bf16 products per second that the vendors state, by a part of the device's name."""


def parser(about: str) -> ArgumentParser:
    """The options that every script has."""
    made = ArgumentParser(description=about)
    made.add_argument("--json", type=Path, required=True, metavar="FILE")
    made.add_argument("--shape", choices=SHAPES, default="internvl3-2b")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for the small shapes")
    made.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of weights (default: bfloat16)")
    made.add_argument("--num-repeats", type=int, default=5, help="measured repeats, after one that warms up")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--work", type=Path, default=Path("runs/gpu"), help="folder for what a policy needs")
    return made


def parse(made: ArgumentParser, arguments: list[str] | None = None) -> Namespace:
    """The options; ends the program with a message where there is no such device."""
    args = made.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        made.exit(2, f"{made.prog}: no CUDA device is visible to torch {torch.__version__}; --device cpu --shape small-internvl "
                     "runs the same code on a processor\n")  # fmt: skip
    torch.manual_seed(args.seed)
    return args


def device_facts(args: Namespace) -> dict[str, Any]:
    """Machine, GPU, shape and versions, for the file of figures."""
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    facts = {"gpu": gpu, "shape": args.shape, "dtype": args.dtype, "num_repeats": args.num_repeats}
    return machine() | facts | {"versions": {"torch": torch.__version__, "python": sys.version.split()[0]}}


def peak_tflops(device: str) -> float | None:
    """Of the device in use; None if it is not known."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def median_s(body: Callable[[], object], num_repeats: int, device: str) -> float:
    """Median seconds of `body` over the repeats, after one that is not counted; the device has finished each."""
    seconds: list[float] = []
    for _ in range(num_repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        body()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_gib(device: str) -> float | None:
    """Most memory that torch held on the device since its start; None on a processor."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
