"""What a vLLM engine is started with: the settings we choose, vLLM's arguments, the environment of its processes.

Invariant: importing this module imports neither vLLM nor torch, and `cpu_environment` is applied before vLLM is
imported (vLLM reads it then). Called by `rollout.vllm_engine` and by whoever makes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvista_ray.config import TrainConfig
from medvista_ray.protocol import STOP_STRINGS
from medvista_ray.rollout.chat import END, banned_token_ids
from medvista_ray.weights.vllm_plugin import BACKEND, DEVICE_BACKENDS, ENGINE_CORES, WORKER_EXTENSION, parse_cores

BAN_TOKENS = "medvista_ray.rollout.vllm_logits:BanTokens"

if TYPE_CHECKING:
    from medvista_ray.models.policy import PolicyInputs


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """One engine."""

    model: Path
    """A Hugging Face folder."""
    banned: tuple[int, ...] = ()
    """Token ids that may never be sampled: picture, start and padding tokens."""
    num_tokens: int | None = None
    """Tokens of the tokenizer; the model's rows beyond them are padding and never sampled. None: no such rows."""
    stops: tuple[str, ...] = STOP_STRINGS
    """Generation stops behind any of these."""
    version: int = 0
    """The version that the folder's weights are."""
    max_model_len: int = 1536
    max_num_seqs: int = 96
    """Sequences decoded together."""
    kv_cache_mib: int = 768
    max_images: int = 16
    """Pictures per prompt."""
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of the picture processor, the learner's own."""
    dtype: str = "float32"
    seed: int = 0
    """Of the engine: a seed per request can kill vLLM on a CPU."""
    train_vision: bool = True
    """Whether updates change the vision tower, so that encoded pictures must be forgotten."""
    recompute_on_update: bool = False
    """Whether running requests are prefilled anew after an update (see `rollout.vllm_engine`)."""
    weight_backend: str = BACKEND
    """Name of vLLM's weight-transfer engine."""
    cores: str = ""
    """Cores of the engine's compute threads, as "0" or "0-3,6"; empty: one thread anywhere. Unused on a GPU."""


def engine_settings(config: TrainConfig, inputs: PolicyInputs, index: int) -> EngineSettings:
    """The settings of generator number `index` of a run, for the policy `inputs`."""
    generator = config.generator
    cores = generator.cpu_cores[index] if index < len(generator.cpu_cores) else str(index)
    return EngineSettings(
        model=inputs.path,
        banned=banned_token_ids(inputs.tokenizer),
        num_tokens=len(inputs.tokenizer),
        max_model_len=config.policy.max_model_len,
        max_num_seqs=generator.max_num_seqs,
        kv_cache_mib=generator.kv_cache_mib,
        # The question's pictures, and a call may bring several.
        max_images=4 * (config.rollout.max_calls + 1),
        processor_kwargs=inputs.family.processor_kwargs,
        dtype=generator.dtype,
        seed=config.seed + index,
        train_vision=config.policy.train_vision,
        recompute_on_update=generator.recompute_on_update,
        weight_backend=DEVICE_BACKENDS.get(config.weights.transport, BACKEND),
        cores="" if generator.num_gpus else cores,
    )


def cpu_environment(cores: str, backend: str = BACKEND) -> dict[str, str]:
    """Environment of an engine's processes: quiet, offline and, where vLLM runs on a CPU, its threads on `cores`.

    The engine computes inside its scheduler's process instead of in a worker of its own: on a CPU the two only take
    turns, and the hand-over cost a third of a core. The threads are then bound by us
    (`weights.vllm_plugin.bind_cores`).
    """
    return {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(max(1, len(parse_cores(cores)))),
        ENGINE_CORES: cores,
        # Handles of device memory (`weights.device`) are pickled on their way, between processes of this user on this node.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1" if backend == DEVICE_BACKENDS["cuda_ipc"] else "0",
    }


def ban_config(settings: EngineSettings) -> dict[str, Any]:
    """What `rollout.vllm_logits.BanTokens` reads."""
    # A slice from here on is empty for any vocabulary.
    num_tokens = settings.num_tokens if settings.num_tokens is not None else 2**62
    return {"medvista_banned": list(settings.banned), "medvista_num_tokens": num_tokens}


def split_stops(vocab: Mapping[str, int], stops: Sequence[str]) -> tuple[list[int], list[str]]:
    """(token ids, strings) that end a turn: a stop that is one token by its id, which spares detokenizing on the way.

    The end-of-turn token always ends it.
    """
    token_ids = [vocab[stop] for stop in (*stops, END) if stop in vocab]
    return token_ids, [stop for stop in stops if stop not in vocab]


def engine_args(settings: EngineSettings) -> Any:
    """vLLM's AsyncEngineArgs. Eager mode with an explicit KV cache size also skips the warm-up on a CPU."""
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig
    from vllm.platforms import current_platform

    return AsyncEngineArgs(
        model=str(settings.model),
        dtype=settings.dtype,  # pyright: ignore[reportArgumentType] - vLLM's literal type
        seed=settings.seed,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        # vLLM's 128 on a CPU would cache few of our short prefixes: 92 % of prompt tokens hit instead of 83 %.
        block_size=32 if current_platform.is_cpu() else None,
        kv_cache_memory_bytes=settings.kv_cache_mib * 2**20,
        limit_mm_per_prompt={"image": settings.max_images, "video": 0},
        mm_processor_kwargs=dict(settings.processor_kwargs),
        mm_processor_cache_gb=0.5,
        enforce_eager=True,
        logprobs_mode="processed_logprobs",
        # Not the model folder's own sampling defaults (top-k and the like), which the learner's softmax does not know.
        generation_config="vllm",
        weight_transfer_config=WeightTransferConfig(backend=settings.weight_backend),
        worker_extension_cls=WORKER_EXTENSION,
        logits_processors=[BAN_TOKENS],
        additional_config=ban_config(settings),
        distributed_executor_backend="uni",
        disable_log_stats=True,
    )
