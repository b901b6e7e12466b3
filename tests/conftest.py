"""What every test shares: an environment that is set before ray is imported, markers by folder, one local Ray.

Nothing here is autouse and nothing ends a process that the test session did not start.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ray reads these when it is imported. A local ray.init() would otherwise switch token authentication on.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As in a run. Small fp32 products of several threads mostly wait for each other, for minutes on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("unit", "bench", "ray", "serve", "chaos", "e2e", "gpu")

# The tree under test, also where it is not installed; workers that tests start see it through the variable.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test carries the marker of its folder."""
    for item in items:
        layer = item.path.relative_to(ROOT / "tests").parts[0]
        if layer in LAYERS:
            item.add_marker(layer)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this test session's own, with a short folder name (socket paths are bounded to 107 characters).

    Eight logical CPUs: they are Ray's admission tickets, not cores, and actors that mostly wait hold one each.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="mv", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=512 * 2**20,
        _temp_dir=folder,
        namespace="tests",
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
