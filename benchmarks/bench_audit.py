"""Is every question family of MedVista-Bench solvable with the tools, and with nothing less?

    python benchmarks/bench_audit.py --json audit.json

Per family: the scripted expert plays tasks of test subjects with the real tools in this process; three shortcuts, fitted on
training subjects, answer test tasks. Tasks of the wide set are counted as a training run would make them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine
from medvista_ray.config import BenchConfig
from medvista_ray.envs.episode import MedEnv
from medvista_ray.tasks.bench import shortcuts
from medvista_ray.tasks.bench.expert import make_expert
from medvista_ray.tasks.bench.families import SETS
from medvista_ray.tasks.bench.source import MedVistaBench
from medvista_ray.tasks.scoring import is_right
from medvista_ray.tools.base import ToolOptions
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import Split, Task

TOOLS = (
    "zoom_in",
    "super_resolve",
    "enhance",
    "compare_regions",
    "ground",
    "segment_text",
    "segment_medical",
    "measure",
    "search_text",
)
MIN_EXPERT, MARGIN = 0.90, 0.08
"""What passes: the expert's accuracy, and a shortcut's above chance (three standard errors of 300 tasks at one half)."""
BY_EYE = ("side_marker", "nucleus_present", "modality", "turned_view", "fine_print", "lost_marker")
"""Here the script calls the tools but, having no eyes, takes what must be seen in the end from the gold answer."""
MAX_CALLS, JITTER, TIMEOUT_S = 6, 0.03, 120.0


async def solve(task: Task, bench: MedVistaBench, client: LocalToolClient) -> tuple[bool, tuple[str, ...]]:
    """Whether the expert's answer is right, and the tools that it called without an error."""
    env = MedEnv(client, bench.open, MAX_CALLS)
    observation, called = await env.reset(task), list[str]()
    expert = make_expert(task, 0, JITTER)
    while True:
        step = await env.step(await expert.next(observation))
        observation = step.observation
        if step.terminated or step.truncated:
            return is_right(task, step.info["answer"]), tuple(called)
        called += [step.info["tool_name"]] if step.info["tool_ok"] else []


def drawn(bench: MedVistaBench, family: str, split: Split, number: int) -> list[Task]:
    """The first tasks of a family."""
    return [task for index in range(number) if (task := bench.make(family, split, index)) is not None]


def audit_shortcuts(bench: MedVistaBench, train: Sequence[Task], test: Sequence[Task]) -> dict[str, float]:
    """Accuracy of each shortcut on test subjects."""
    answers = {
        "commonest_answer": shortcuts.commonest(train, test),
        "question_only": shortcuts.from_question(train, test),
        "thumbnail": shortcuts.from_thumbnail(train, test, bench.open),
    }
    return {name: round(shortcuts.accuracy(test, given), 3) for name, given in answers.items()}


def audit_family(family: str, bench: MedVistaBench, client: LocalToolClient, sizes: argparse.Namespace) -> dict[str, Any]:
    """The row of one family, without its counts."""
    train, test = (drawn(bench, family, split, sizes.num_shortcut) for split in (Split.TRAIN, Split.TEST))
    played = test[: sizes.num_expert]
    results = [asyncio.run(solve(task, bench, client)) for task in played]
    found = audit_shortcuts(bench, train, test)
    expert, chance = float(np.mean([right for right, _ in results])), float(np.mean([task.chance for task in test]))
    by_plan = float(np.mean([called == task.plan for task, (_, called) in zip(played, results, strict=True)]))
    no_tool = all(not task.plan for task in test)
    return {
        "modality": sorted({task.modality for task in (*train, *test)}),
        "modality_test": sorted({task.modality for task in test}),
        "difficulty": max(task.difficulty for task in test),
        "num_images": max(task.num_images for task in test),
        "is_scan": any("slices" in task.recipe for task in test),
        "plan": list(max((task.plan for task in test), key=len)),
        "expert_accuracy": round(expert, 3),
        "expert_num_tasks": len(played),
        "expert_by_plan": round(by_plan, 3),
        "last_step_by_eye": family in BY_EYE,
        "shortcut_accuracy": max(found.values()),
        "shortcuts": found,
        "shortcut_num_tasks": [len(train), len(test)],
        "chance": round(chance, 3),
        "passed": expert >= MIN_EXPERT and (no_tool or max(found.values()) <= chance + MARGIN),
    }


def count(bench: MedVistaBench) -> dict[str, Any]:
    """Tasks of the wide set by split: in all, by family and by difficulty, how many differ, and subjects in two splits."""
    made = {split: bench.tasks(split) for split in (Split.TRAIN, Split.TEST)}
    people = {split: {name for task in tasks for name in task.subject.split("+")} for split, tasks in made.items()}
    return {
        "num": {split.value: len(tasks) for split, tasks in made.items()},
        "num_distinct": {
            split.value: len({(t.question, json.dumps(t.recipe, sort_keys=True, default=str)) for t in tasks})
            for split, tasks in made.items()
        },
        "families": {split.value: dict(Counter(task.family for task in tasks)) for split, tasks in made.items()},
        "difficulty": {split.value: dict(sorted(Counter(t.difficulty for t in tasks).items())) for split, tasks in made.items()},
        "modality": {split.value: dict(Counter(t.modality for t in tasks).most_common()) for split, tasks in made.items()},
        "subjects_in_both": sorted(people[Split.TRAIN] & people[Split.TEST]),
    }


def summary(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What the table of benchmarks shows: the worst family, and how far the best shortcut is above a blind guess."""
    excess = [row["shortcut_accuracy"] - row["chance"] for row in rows.values() if row["plan"]]
    return {
        "num_families": len(rows),
        "num_passed": sum(row["passed"] for row in rows.values()),
        "num_modalities": len({kind for row in rows.values() for kind in row["modality"]}),
        "expert_accuracy_min": min(row["expert_accuracy"] for row in rows.values()),
        "shortcut_above_chance_max": round(max(excess, default=0.0), 3),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--only", nargs="+", choices=sorted({*SETS["wide"], *SETS["core"]}), help="only these families")
    parser.add_argument("--num-expert", type=int, default=60, help="test tasks that the expert plays in each family")
    parser.add_argument("--num-shortcut", type=int, default=300, help="train and test tasks of each family for the shortcuts")
    parser.add_argument("--num-train", type=int, default=20_020, help="train tasks to make of the wide set")
    parser.add_argument("--num-test", type=int, default=2_020, help="test tasks to make of the wide set")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the audit; 1 if a family fails."""
    options, about = parse(argv), machine()
    bench = MedVistaBench(BenchConfig(families=("wide",), num_train=options.num_train, num_test=options.num_test))
    client = LocalToolClient(TOOLS, TIMEOUT_S, ToolOptions(num_threads=max(1, (os.cpu_count() or 2) // 2)))
    start, rows = time.perf_counter(), dict[str, dict[str, Any]]()
    counts = count(bench)
    for family in options.only or SETS["wide"]:
        numbers = {f"num_{split}": counts["families"][split].get(family, 0) for split in ("train", "test")}
        rows[family] = numbers | audit_family(family, bench, client, options)
        row = rows[family]
        print(
            f"{family:20} train {row['num_train']:5} test {row['num_test']:4} calls {len(row['plan'])} "
            f"expert {row['expert_accuracy']:.2f} shortcut {row['shortcut_accuracy']:.2f} chance {row['chance']:.2f} "
            f"{'ok' if row['passed'] else 'FAILED'}",
            flush=True,
        )
    client.close()
    failed = [family for family, row in rows.items() if not row["passed"]]
    report = about | {
        "passed": not failed and not counts["subjects_in_both"],
        "failed": failed,
        "summary": summary(rows),
        "families": rows,
        "tasks": counts,
        "wall_s": round(time.perf_counter() - start, 1),
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"{len(rows) - len(failed)} of {len(rows)} families pass; tasks {counts['num']}; {report['wall_s']} s -> {options.json}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
