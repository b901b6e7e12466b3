"""The embedding cache: made once, bounded, shared through the disk, and never in the way."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.tools.localize.embedding_cache import Embedding, EmbeddingCache


def embedding(value: float = 0.0) -> Embedding:
    return np.full((4, 8, 8), value, np.float16)


SIZE = embedding().nbytes


def test_concurrent_calls_for_one_picture_make_its_embedding_once() -> None:
    cache = EmbeddingCache(10 * SIZE)

    def make() -> Embedding:
        time.sleep(0.1)
        return embedding(7)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.get("a", make), range(8)))
    assert cache.num_made == 1
    assert cache.num_hits == 7
    assert all(one is found[0] for one in found)


def test_different_pictures_are_made_at_the_same_time() -> None:
    cache = EmbeddingCache(10 * SIZE)
    both = threading.Barrier(2, timeout=2)

    def make() -> Embedding:
        both.wait()
        return embedding()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda key: cache.get(key, make), "ab"))
    assert cache.num_made == 2


def test_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    cache = EmbeddingCache(2 * SIZE)
    for key in ("a", "b", "a", "c", "a"):
        cache.get(key, embedding)
    assert cache.num_made == 3
    assert cache.num_bytes == 2 * SIZE
    cache.get("b", embedding)
    assert cache.num_made == 4


def test_a_failure_reaches_everyone_who_waits_and_is_not_kept() -> None:
    cache = EmbeddingCache(10 * SIZE)
    started = threading.Event()

    def fail() -> Embedding:
        started.set()
        time.sleep(0.1)
        raise RuntimeError("no weights")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "a", fail)
        started.wait(2)
        second = pool.submit(cache.get, "a", fail)
        for call in (first, second):
            with pytest.raises(RuntimeError, match="no weights"):
                call.result()
    assert cache.get("a", lambda: embedding(3))[0, 0, 0] == 3


def test_another_process_reads_from_disk_what_one_made(tmp_path: Path) -> None:
    made = EmbeddingCache(SIZE, tmp_path, 10 * SIZE).get("a", lambda: np.arange(12, dtype=np.float16))
    other = EmbeddingCache(SIZE, tmp_path, 10 * SIZE)
    assert np.array_equal(other.get("a", embedding), made)
    assert (other.num_made, other.num_disk_hits) == (0, 1)


def test_a_damaged_file_is_made_anew_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"half a fi")
    cache = EmbeddingCache(SIZE, tmp_path, 10 * SIZE)
    assert cache.get("a", lambda: embedding(5))[0, 0, 0] == 5
    assert np.load(tmp_path / "a.npy")[0, 0, 0] == 5


def test_a_disk_that_cannot_be_written_costs_nothing_but_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    cache = EmbeddingCache(SIZE, blocker / "below", 10 * SIZE)
    for key in "ab":
        assert cache.get(key, embedding).shape == (4, 8, 8)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert list(tmp_path.iterdir()) == [blocker]


def test_the_folder_stays_within_its_bound(tmp_path: Path) -> None:
    cache = EmbeddingCache(SIZE, tmp_path, 20 * SIZE)
    for number in range(70):
        cache.get(str(number), embedding)
    kept = list(tmp_path.glob("*"))
    assert len(kept) <= 20 + 32
    assert (tmp_path / "69.npy") in kept
