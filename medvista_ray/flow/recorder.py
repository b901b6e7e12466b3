"""Where the records of steps go: a line of metrics.jsonl, TensorBoard scalars, a bounded tail for the progress display.

Invariant: only declared metrics are written (see `medvista_ray.metrics`). Made by the coordinator, called by
`flow.loop`.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Protocol

from medvista_ray.metrics import check_declared

NUM_RECENT = 200


class ScalarWriter(Protocol):
    """What is used of TensorBoard's SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...


class MetricsRecorder:
    """Appends one record per step."""

    def __init__(self, run_dir: Path | None = None, scalars: ScalarWriter | None = None) -> None:
        self._path = run_dir / "metrics.jsonl" if run_dir else None
        self._scalars = scalars
        self.recent: deque[dict[str, float]] = deque(maxlen=NUM_RECENT)

    def append(self, record: dict[str, float]) -> None:
        """Write one step. Raises InvariantError if a key is not declared."""
        check_declared(record)
        step = int(record["step"])
        record = {**record, "step": step}
        self.recent.append(record)
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self._scalars:
            for name, value in record.items():
                self._scalars.add_scalar(name, value, step)
            self._scalars.flush()


def tensorboard_writer(folder: Path) -> ScalarWriter:
    """A SummaryWriter (imports torch)."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
