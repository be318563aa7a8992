"""The unit of work of a batch: one clip, and the worker that turns it into an outcome.

A unit knows nothing of who runs it, and a worker nothing of the other clips.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch

from mpsnet_cli.batch.fault import Fault
from mpsnet_cli.batch.outcome import Outcome, Status
from mpsnet_cli.batch.storage import shown, staged
from mpsnet_cli.batch.strip import keep_strip
from mpsnet_cli.batch.workers import Share
from mpsnet_cli.body import load_body
from mpsnet_cli.errors import OutputError
from mpsnet_cli.export.result import read_result
from mpsnet_cli.export.write import export_result
from mpsnet_cli.job import Arguments, Existing, keep_share, keep_tracks, run_clip
from mpsnet_cli.model.inference import Precision
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import probe
from mpsnet_cli.weights import load_model

NO_ROOM = {os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)}
TELL_EVERY = 0.2  # s between messages of a stage's progress


class Progress(NamedTuple):
    """A message of a worker: how far a stage of its clip is."""

    stage: str
    done: int
    total: int | None


class Warned(NamedTuple):
    """A message of a worker: a sentence for the user."""

    sentence: str
    of_clip: bool  # or of the models, the same for all


@dataclass(frozen=True)
class Models:
    """What workers load, once each."""

    weights: str | None = None
    body: str | None = None
    gender: str = "neutral"
    smpl_path: Path | None = None
    precision: Precision = "auto"
    batch_size: int | None = None


@dataclass(frozen=True)
class Unit:
    """One clip, what is to be done with it, and where its result goes."""

    clip: Path
    name: str
    folder: Path
    arguments: Arguments
    existing: Existing = "same"
    formats: tuple[str, ...] = ()  # to export
    is_done: bool = False  # its result is there, and only exports may be missing
    parts: int = 1  # between which its features are shared, before it is worked on
    patience: float = 0.0  # s, see `run_clip`
    url: str | None = None  # where its result goes from `folder`, see `storage`


def make_worker(models: Models, share: Share) -> Worker:
    """Load the models onto a worker's device."""
    torch.set_num_threads(share.threads)
    cv2.setNumThreads(share.threads)
    return Worker(models, share.device)


class Worker:
    """The models, loaded, and how a unit is worked on with them."""

    def __init__(self, models: Models, device: str) -> None:
        report = Reporter()
        self._model = load_model(
            models.weights,
            device=device,
            precision=models.precision,
            batch_size=models.batch_size,
            report=report,
        )
        self._body = load_body(
            models.body, path=models.smpl_path, gender=models.gender, device=self._model.device
        )
        self._warnings = report.warnings

    def __call__(self, unit: Unit, tell: Callable[[Any], None]) -> Outcome:
        """Do a unit's work; whatever goes wrong is in the outcome."""
        return staged(self._work)(unit, tell)

    def _work(self, unit: Unit, tell: Callable[[Any], None]) -> Outcome:
        report = _Telling(tell, self._warnings)
        began = time.perf_counter()
        try:
            _, manifest = run_clip(
                probe(unit.clip),
                unit.folder,
                unit.arguments,
                model=self._model,
                body=self._body,
                existing=unit.existing,
                patience=unit.patience,
                prepared=unit.parts > 1,
                report=report,
            )
            if unit.formats and manifest["people"]:
                self._export(unit, report)
        except Exception as error:
            fault = Fault.of(error)
            outcome = Outcome(
                unit.clip,
                unit.name,
                # Where there is no room for this clip, there is none for the others.
                "stopped" if any(words in fault.sentence for words in NO_ROOM) else "failed",
                fault.sentence,
                traceback=fault.traceback,
            )
        else:
            outcome = outcome_of(unit, manifest)
            keep_strip(outcome)
        return replace(outcome, seconds=round(time.perf_counter() - began, 3))

    def keep_tracks(self, unit: Unit, tell: Callable[[Any], None]) -> dict[str, Any] | None:
        """Find the people of a clip that is to be shared; see `job.keep_tracks`."""
        return keep_tracks(
            probe(unit.clip),
            unit.folder,
            unit.arguments,
            model=self._model,
            body=self._body,
            existing=unit.existing,
            patience=unit.patience,
            report=_Telling(tell, self._warnings),
        )

    def keep_share(
        self, unit: Unit, job: dict[str, Any], share: int, tell: Callable[[Any], None]
    ) -> None:
        """Compute a share of a clip's features; see `job.keep_share`."""
        keep_share(
            probe(unit.clip),
            unit.folder,
            unit.arguments,
            job,
            model=self._model,
            share=share,
            of=unit.parts,
            report=_Telling(tell, self._warnings),
        )

    def _export(self, unit: Unit, report: Reporter) -> None:
        exports = export_result(
            read_result(unit.folder),
            self._body,
            unit.formats,
            existing="replace" if unit.existing == "replace" else "keep",
            report=report,
        )
        if exports.failures:
            reasons = [f"{name}: {error.message}" for name, error in exports.failures.items()]
            raise OutputError(f"{unit.folder} is whole, but not its exports. {' '.join(reasons)}")


def outcome_of(unit: Unit, manifest: dict[str, Any]) -> Outcome:
    """Read from its manifest what became of a clip that has a result."""
    status: Status = "kept" if unit.is_done else "done"
    sentence = None
    if not manifest["people"]:
        status, sentence = "nobody", f"Nobody was found in {shown(unit.clip)}."
    elif not manifest["complete"]:
        status = "partial"
        sentence = f"Only a part of {shown(unit.clip)} could be read: copy or download it again."
    return Outcome(unit.clip, unit.name, status, sentence, unit.folder, manifest)


class _Telling(Reporter):
    """Send what happens to the parent, but not too often."""

    def __init__(self, tell: Callable[[Any], None], of_models: Sequence[str]) -> None:
        super().__init__()
        self._tell = tell
        self._of_models = of_models
        self._last = 0.0
        for sentence in of_models:  # each result says what its weights are
            self.warn(sentence)

    def on_start(self, stage: str, total: int | None) -> None:
        self._last = time.perf_counter()
        self._tell(Progress(stage, 0, total))

    def on_advance(self, stage: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        if now - self._last >= TELL_EVERY:
            self._last = now
            self._tell(Progress(stage, done, total))

    def on_finish(self, stage: str, done: int, seconds: float) -> None:  # noqa: ARG002
        self._tell(Progress(stage, done, done))

    def on_warning(self, sentence: str) -> None:
        self._tell(Warned(sentence, of_clip=sentence not in self._of_models))
