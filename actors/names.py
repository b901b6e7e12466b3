"""Names of the actors, as the dashboard and the log show them. One Ray namespace per run keeps runs apart."""

from __future__ import annotations

LEARNER = "learner"
COORDINATOR = "coordinator"


def learner_peer(rank: int) -> str:
    """Name of the learner's process number `rank`, from 1; the first is LEARNER."""
    return f"{LEARNER}-{rank}"


def generator(index: int) -> str:
    """Name of the generator actor number `index`, from 0."""
    return f"generator-{index}"


def relay(node_id: str) -> str:
    """Name of the actor that brings weights to a node."""
    return f"relay-{node_id[:16]}"


def namespace(run_name: str) -> str:
    """Ray namespace of a run."""
    return f"medvista/{run_name}"
