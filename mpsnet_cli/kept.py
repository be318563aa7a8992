"""What the stages of an unfinished job found, on disk, so that a killed job goes on from there."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.progress import Reporter

STATE = "state.json"  # the job that everything beside it belongs to
FEATURES = "features"
DIGEST = hashlib.sha256().digest_size  # bytes

T = TypeVar("T")


class Kept:
    """The stage results of one job, in a folder that comes to be with the first of them.

    Each is a file of its own, written whole or not at all. It opens with a digest of its content,
    of the job and of what else it was computed from: one that is damaged, or of something else, is
    not taken, and computed anew. Several processes, of several machines too, may add features at
    once. Errors of the file system are raised as OSError.
    """

    def __init__(
        self,
        folder: Path,
        job: Mapping[str, Any],
        report: Reporter,
        *,
        prepared: bool = False,
    ) -> None:
        """Take up what is in `folder`; what another `job`, any JSON object, left there is removed.

        `report` is told of both, but not of what was `prepared` for whoever takes it up now.
        """
        self.folder = folder
        self.spared = 0.0  # s, that the features taken from here took when they were computed
        self._job = json.dumps(job, sort_keys=True).encode()
        self._report = report
        if not folder.exists():
            return
        state = folder / STATE
        if state.is_file() and state.read_bytes() == self._job:
            if not prepared:
                report.warn("An interrupted run is continued: what it found out is taken up.")
        else:
            report.warn(f"{folder} is damaged, or was left by another job: nothing of it is used.")
            shutil.rmtree(folder)

    def has(self, name: str) -> bool:
        """Whether a stage's results are there, be they whole or not."""
        return (self.folder / name).is_file()

    def once(self, name: str, kind: Callable[..., T], compute: Callable[[], list[T]]) -> list[T]:
        """Return what a stage found, instances of a dataclass; keep it once it is computed.

        What the reporter had heard by then, it hears again: warnings, losses, seconds.
        """
        arrays = self._load(name)
        if arrays is None:
            found = compute()
            heard = {key: getattr(self._report, key) for key in ("warnings", "losses", "seconds")}
            arrays = {
                f"{number}/{key}": value
                for number, item in enumerate(found)
                for key, value in vars(item).items()
            }
            self._save(name, {"heard": json.dumps(heard), "count": len(found), **arrays})
            return found
        self._tell(json.loads(str(arrays["heard"])))
        items: list[dict[str, Any]] = [{} for _ in range(int(arrays["count"]))]
        for key, value in arrays.items():
            number, _, field = key.partition("/")
            if field:
                items[int(number)][field] = value if value.ndim else value.item()
        return [kind(**item) for item in items]

    def features(
        self, places: Sequence[tuple[float, ...]], compute: Callable[[], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Return the features (n, 2048) of crops that run together; keep them once computed.

        `places` (n) says what the crops are cut from: frame and box of each.
        """
        name = f"{FEATURES}/{places[0][0]:08d}"
        arrays = self._load(name, places)
        if arrays is None:
            began = time.perf_counter()
            features = compute()
            took = time.perf_counter() - began
            self._save(name, {"features": features, "seconds": took}, places)
            return features
        self.spared += float(arrays["seconds"])
        return arrays["features"]

    def drop_features(self) -> None:
        """Free the space that the features take, once what they were for is kept."""
        if (self.folder / FEATURES).exists():
            shutil.rmtree(self.folder / FEATURES)

    def _tell(self, heard: dict[str, Any]) -> None:
        for sentence in heard["losses"]:
            self._report.lose(sentence)
        for sentence in heard["warnings"]:
            self._report.warn(sentence)
        for stage, seconds in heard["seconds"].items():
            self._report.seconds[stage] = self._report.seconds.get(stage, 0.0) + seconds

    def _load(self, name: str, source: object = None) -> dict[str, NDArray[Any]] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        content = path.read_bytes()
        if content[:DIGEST] != self._digest(name, source, content[DIGEST:]):
            self._report.warn(
                f"Some of what {self.folder} keeps is damaged: that part is computed anew."
            )
            return None
        with np.load(io.BytesIO(content[DIGEST:]), allow_pickle=False) as archive:
            return dict(archive)

    def _save(self, name: str, arrays: Mapping[str, Any], source: object = None) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (self.folder / STATE).exists():
            _write(self.folder / STATE, self._job)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
        _write(path, self._digest(name, source, content) + content)

    def _digest(self, name: str, source: object, content: bytes) -> bytes:
        digest = hashlib.sha256(self._job)
        digest.update(json.dumps([name, source]).encode())
        digest.update(content)
        return digest.digest()


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only once complete."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
