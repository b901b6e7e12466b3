"""Pre-train the base of the tiny policy: `python -m trainers.pretrain_tiny --out FOLDER --steps N`.

Owns the recipe behind the weights that the package ships (recipe.json beside them records arguments, seeds, versions and
the weights' sha256). Invariant: only train subjects and train concepts are seen, and no tool call ever. Run by hand, once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from medvista_ray.models.attention import attention_of
from medvista_ray.models.batching import build_batch, split_microbatches
from medvista_ray.models.logprobs import sampled_logprobs
from medvista_ray.models.policy import Policy, load_policy
from medvista_ray.models.precision import cpu_multiplies_bf16
from medvista_ray.models.tiny_architecture import build_tiny_model, build_tiny_processor, save_policy_folder
from medvista_ray.models.tiny_tokenizer import build_tiny_tokenizer
from medvista_ray.protocol import system_prompt
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.pictures import policy_picture
from medvista_ray.types import AnswerKind, Episode, EpisodeStatus, Observation, Split, Task
from trainers.pretrain_data import STAGES, PretrainMixture, Sample, corpus

VOCAB_SIZE = 4096
TOKENIZER_SAMPLES = 3000
PROTOCOL_TEXTS = (
    system_prompt((), 0),
    'Think, then call one tool: <think>...</think><tool_call>{"name": "...", "arguments": {...}}</tool_call>',
    "At most calls. Boxes are [x0, y0, x1, y1], integers 0..1000. Tools:",
    "zoom_in(image_index: int = 0, bbox: [x0, y0, x1, y1], scale?: float): crop and enlarge a region.",
    "segment_medical(image_index: int = 0, bbox: [x0, y0, x1, y1]): outline the structure in a box.",
    "measure(bbox?: [x0, y0, x1, y1], mask_index?: int, image_index: int = 0, reference_bbox?: [x0, y0, x1, y1], "
    "reference_mask_index?: int): size, area, mean value and center of a box or mask.",
    "search_text(query: str, k?: int = 3): look up codes and terms by their words.",
    '{"name": "zoom_in", "arguments": {"image_index": 0, "bbox": [1, 2, 3, 4]}}',
    '{"name": "segment_medical", "arguments": {"image_index": 0, "bbox": [1, 2, 3, 4]}}',
    '{"name": "measure", "arguments": {"mask_index": 0}}',
    '{"name": "measure", "arguments": {"bbox": [1, 2, 3, 4], "reference_bbox": [1, 2, 3, 4]}}',
    '{"name": "search_text", "arguments": {"query": "term"}}',
    "It is too small, I zoom in. I need a closer look. I outline the structure. First the outline. I measure it. Now I "
    "measure. I look it up. I search for the term. Now I know. I have it.",
    "image 1 shows this region. mask 0: box [1, 2, 3, 4]. reference mean 1 HU: region is higher; region is smaller",
)
"""Prompts, calls and replies, for the tokenizer's merges only: the base is not trained on them."""
CLASSES = {
    "letter": ("L", "R", "A", "P"),
    "nucleus": ("yes", "no"),
    "modality": ("CT", "MRI", "X-ray", "ultrasound", "microscopy"),
    "brightness": ("left", "right"),
}
"""Answers of the vision stage's kinds."""
NO_TASK = Task(
    id="pretrain", source="", family="", split=Split.TRAIN, subject="", modality="", question="", answer="", kind=AnswerKind.TEXT
)


def main() -> None:
    """Parse arguments, train, save."""
    arguments = _arguments()
    started = time.perf_counter()
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    console = Console()
    policy = _policy(arguments)
    losses = train(policy, arguments, console)
    recipe = vars(arguments) | {
        "start": [folder.name for folder in arguments.start],
        "out": "",
        "vocab_size": VOCAB_SIZE,
        "loss_end": round(float(np.mean(losses[-50:])), 4),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "torch": torch.__version__,
    }
    _save(policy, arguments.out, recipe)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=32, help="samples per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--decay", action="store_true", help="decay the rate to a tenth (the last phase of a run)")
    parser.add_argument("--stage", choices=list(STAGES), default="joint", help="what is taught")
    parser.add_argument("--start", type=Path, nargs="*", default=[], help="folders whose weights to start from")
    return parser.parse_args()


def _policy(arguments: argparse.Namespace) -> Policy:
    """A new policy, or one that takes each start folder's trained part: its vision weights, its language weights, or both."""
    if not arguments.start:
        tokenizer = build_tiny_tokenizer(corpus(TOKENIZER_SAMPLES, 0, list(PROTOCOL_TEXTS) * 100), VOCAB_SIZE)
        processor = build_tiny_processor(tokenizer)
        save_policy_folder(build_tiny_model(processor.tokenizer, arguments.seed), processor, arguments.out)
        return load_policy(arguments.out)
    policy = load_policy(arguments.start[0])
    for folder in arguments.start[1:]:
        recipe = json.loads((folder / "recipe.json").read_text())
        part = {n: w for n, w in load_policy(folder).model.state_dict().items() if _is_trained_by(n, recipe["stage"])}
        policy.model.load_state_dict(part, strict=False)
    return policy


def _is_trained_by(name: str, stage: str) -> bool:
    is_vision = "vision_tower" in name or "multi_modal_projector" in name
    return is_vision == (stage == "vision")


def train(policy: Policy, arguments: argparse.Namespace, console: Console) -> list[float]:
    """Cross-entropy on the answers."""
    stage = VisionStage(policy) if arguments.stage == "vision" else LanguageStage(policy)
    optimiser = torch.optim.AdamW(stage.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.02)
    mixture = iter(PretrainMixture(arguments.seed, STAGES[arguments.stage]))
    losses: list[float] = []
    started = time.perf_counter()
    policy.model.train()
    for step in range(arguments.steps):
        for group in optimiser.param_groups:
            group["lr"] = arguments.lr * _schedule(step, arguments.steps, arguments.decay)
        optimiser.zero_grad(set_to_none=True)
        losses.append(stage.backward([next(mixture) for _ in range(arguments.batch)]))
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            speed = (step + 1) / (time.perf_counter() - started)
            done = f"step {step + 1}/{arguments.steps} loss {np.mean(losses[-50:]):.3f}"
            console.print(f"{done} {speed:.2f} steps/s {stage.report()}", soft_wrap=True)
        if step % 250 == 249:
            _save(policy, arguments.out, {"stage": arguments.stage, "interim": step + 1})
    return losses


def _schedule(step: int, total: int, decay: bool, warmup: int = 50) -> float:
    """Share of the peak rate: a linear warm-up, then constant, or a cosine to a tenth in the last phase."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) if decay else 1.0


class LanguageStage:
    """Cross-entropy of the answers' tokens, through the same forward that trains policies."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._chat = ChatFormat.from_policy(policy.tokenizer, policy.model_type)

    def parameters(self) -> list[torch.nn.Parameter]:
        """All weights."""
        return list(self._policy.model.parameters())

    def backward(self, samples: list[Sample]) -> float:
        """Add the gradients of a batch; its loss in nats per answer token."""
        episodes = [episode_of(sample, self._policy, self._chat) for sample in samples]
        num_tokens = sum(episode.num_sampled for episode in episodes)
        total = 0.0
        for indices in split_microbatches(episodes, self._policy, 8192):
            with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()):
                batch = build_batch([episodes[i] for i in indices], self._policy)
                values = sampled_logprobs(self._policy, batch, 1.0).values
            loss = -values.sum() / num_tokens
            loss.backward()
            total += float(loss.detach())
        return total

    def report(self) -> str:
        """Nothing beside the loss."""
        return ""


class VisionStage(torch.nn.Module):
    """Supervised classes on the connector's output: one linear head per kind of picture question, thrown away at the end."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = [policy]
        width = policy.config.text_config.hidden_size * policy.num_image_tokens(np.zeros((1, 1, 3), np.uint8))
        self.tower = policy.model.model.vision_tower
        self.connector = policy.model.model.multi_modal_projector
        self.heads = torch.nn.ModuleDict({kind: torch.nn.Linear(width, len(c)) for kind, c in CLASSES.items()})
        self._hits: dict[str, list[bool]] = {kind: [] for kind in CLASSES}

    def backward(self, samples: list[Sample]) -> float:
        """Add the gradients of a batch; its loss in nats per picture."""
        (policy,) = self._policy
        side = int(policy.config.vision_config.image_size[0])
        pixels = policy.pixel_inputs([policy_picture(sample.images[-1], side) for sample in samples])
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()), attention_of(self.tower, "eager"):
            features = policy.model.get_image_features(**pixels, return_dict=True).pooler_output
        flat = torch.stack(list(features)).flatten(1).float()
        loss = torch.zeros(())
        for kind, head in self.heads.items():
            rows = [i for i, sample in enumerate(samples) if sample.kind == kind]
            if rows:
                logits = head(flat[rows])
                targets = torch.tensor([CLASSES[kind].index(samples[i].answer) for i in rows])
                loss = loss + torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / len(samples)
                self._hits[kind] += (logits.argmax(-1) == targets).tolist()
        loss.backward()
        return float(loss.detach())

    def report(self) -> str:
        """Training accuracy of the latest pictures of each kind."""
        return " ".join(f"{kind} {np.mean(hits[-500:]):.2f}" for kind, hits in self._hits.items() if hits)


def episode_of(sample: Sample, policy: Policy, chat: ChatFormat) -> Episode:
    """A sample as an episode in the no-tools prompt; the last answer's tokens are the trained ones."""
    system = "\n".join(filter(None, (system_prompt((), 0), sample.system)))
    prompt = chat.begin(system, Observation(sample.question, sample.images))
    side = int(policy.config.vision_config.image_size[0])
    pictures = [policy_picture(image, side) for image in sample.images]
    for said, added in sample.exchanges:
        prompt += [*chat.encode_text(said), *chat.observe(Observation(added))]
    answer = chat.encode_text(f"<think>{sample.think}</think><answer>{sample.answer}</answer>")
    prompt = policy.expand(prompt, pictures)
    mask = np.zeros(len(prompt) + len(answer), np.bool_)
    mask[len(prompt) :] = True
    return Episode(
        task=NO_TASK,
        status=EpisodeStatus.ANSWERED,
        turns=[],
        answer=sample.answer,
        token_ids=np.array([*prompt, *answer], np.int32),
        loss_mask=mask,
        logprobs=np.zeros(len(mask), np.float32),
        versions=np.full(len(mask), -1, np.int32),
        images=pictures,
    )


def _save(policy: Policy, folder: Path, recipe: dict[str, Any]) -> None:
    """Write the folder (bf16) and its recipe with the weights' sha256."""
    save_policy_folder(policy.model, build_tiny_processor(policy.tokenizer), folder, torch.bfloat16)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "recipe.json").write_text(json.dumps(recipe | {"sha256": digest}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
