from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpsnet_cli.batch import workers
from mpsnet_cli.batch.workers import Share, count_cores, describe, free_memory, share_out

GB = 1e9


@pytest.mark.parametrize(
    ("devices", "options", "shares"),
    [
        (["cpu"], {"cores": 4}, [("cpu", 1)] * 4),
        (["cpu"], {"cores": 8, "clips": 2}, [("cpu", 4)] * 2),
        (["cpu"], {"cores": 8, "memory": 8 * GB}, [("cpu", 2)] * 3),
        (["cpu"], {"cores": 8, "memory": 1 * GB}, [("cpu", 8)]),
        (["cpu"], {"cores": 8, "clips": 0}, [("cpu", 8)]),
        (["cpu"], {"cores": 2, "wanted": 5, "memory": 1 * GB}, [("cpu", 1)] * 5),
        (["cpu"], {"cores": 2, "wanted": 5, "clips": 1}, [("cpu", 1)]),
        (["cpu"], {"cores": 8, "wanted": 2, "clips": 1}, [("cpu", 4)]),  # as with two clips
        (["cuda:0", "cuda:1"], {"cores": 16}, [("cuda:0", 4), ("cuda:1", 4)] * 2),
        (["cuda:0", "cuda:1"], {"cores": 16, "clips": 3},
         [("cuda:0", 5), ("cuda:1", 5), ("cuda:0", 5)]),
        (["cuda:0"], {"cores": 16, "wanted": 3}, [("cuda:0", 5)] * 3),
        (["cpu"], {"cores": 3, "memory": float("inf")}, [("cpu", 1)] * 3),
    ],
)  # fmt: skip
def test_shares(devices: list[str], options: dict[str, Any], shares: list[Any]) -> None:
    options = {"clips": 100, "memory": 100 * GB, **options}
    assert share_out(devices, **options) == [Share(*share) for share in shares]


def test_watching_nobody_knows_how_many_clips_come() -> None:
    assert len(share_out(["cpu"], clips=None, cores=3, memory=100 * GB)) == 3


def test_description() -> None:
    assert describe([Share("cpu", 1)]) == "1 worker on cpu, 1 thread each"
    shares = [Share("cuda:0", 4), Share("cuda:1", 4)] * 2
    assert describe(shares) == "4 workers on cuda:0, cuda:1, 4 threads each"


def test_memory_is_what_the_tightest_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CGROUP", tmp_path)
    monkeypatch.setattr(workers, "MEMINFO", tmp_path / "meminfo")
    whole = free_memory()  # by sysconf, or unknown
    assert whole > 0
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4000000 kB\n")
    assert free_memory() == 4_000_000 * 1024
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    assert free_memory() == 2_000_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == 4_000_000 * 1024


def test_there_is_a_core() -> None:
    assert count_cores() >= 1
