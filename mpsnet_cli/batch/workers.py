"""How many processes a batch is shared between, and what each of them gets of the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PER_GPU = 2  # one decodes, draws and encodes while the other's network runs
MEMORY = 2.5e9  # bytes that a worker needs of the machine's, models included
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Share:
    """What one worker gets."""

    device: str
    threads: int


def share_out(
    devices: Sequence[str],
    *,
    clips: int | None,
    wanted: int | None = None,
    cores: int,
    memory: float,
) -> list[Share]:
    """Share a machine of so many cores and bytes of free memory between workers, one at least.

    Without a number `wanted`, there are two for each GPU and as many as cores on a CPU, as far as
    memory goes; there are never more than clips (None: nobody knows how many will come). Fewer
    clips than wanted workers do not give each more threads: these can show in the last bits of a
    result, and a batch that goes on is to end with the bytes that it would have had.
    """
    most = cores if devices[0] == "cpu" else PER_GPU * len(devices)
    count = int(min(most, memory / MEMORY)) if wanted is None else wanted
    count = max(1, count if clips is None else min(count, clips))
    threads = max(1, cores // (wanted or count))
    return [Share(devices[k % len(devices)], threads) for k in range(count)]


def describe(shares: Sequence[Share]) -> str:
    """Say in one line how the work is shared."""
    devices = list(dict.fromkeys(share.device for share in shares))
    count, threads = len(shares), shares[0].threads
    return (
        f"{count} worker{'s' * (count != 1)} on {', '.join(devices)}, "
        f"{threads} thread{'s' * (threads != 1)} each"
    )


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> float:
    """Return how many bytes this process may still take, infinity where nothing tells.

    That is what the machine can give, or what is left of a container's or a cluster job's limit.
    """
    return min(_free_of_machine(), _free_of_group())


def _free_of_machine() -> float:
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _free_of_group() -> float:
    """Return what is left of the limit of this control group (Linux, version 2)."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return float("inf")
        return float(limit) - float((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return float("inf")
