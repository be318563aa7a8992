"""What became of one clip of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["done", "kept", "nobody", "partial", "failed", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """One clip, and what became of it.

    status: done now; kept, as it was done before; nobody was found in it; partial, as only a part
        of a damaged clip could be read; failed; or stopped before its end
    sentence: what to tell the user of it; None where all went well
    folder, manifest: its result, where there is one
    seconds: that this run spent on it
    attempts: how often it was begun; a second time after the process died
    traceback: of an error that nobody foresaw
    """

    clip: Path
    name: str  # parts joined by "/", of the result's folder below the batch's
    status: Status
    sentence: str | None = None
    folder: Path | None = None
    manifest: dict[str, Any] | None = None
    seconds: float = 0.0
    attempts: int = 1
    traceback: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the clip has the result that it can have."""
        return self.status in ("done", "kept", "nobody")
