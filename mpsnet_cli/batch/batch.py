"""Many clips: plan, work, report.

Inputs become named clips (`clips`), these a plan (`plan`), its units of work go to worker processes
(`unit`, `pool`), and what becomes of them into the report.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import torch
from filelock import FileLock, Timeout

from mpsnet_cli.batch import storage
from mpsnet_cli.batch.clips import LOCK, common_folder, find_clips, name_clips
from mpsnet_cli.batch.landing import Landing
from mpsnet_cli.batch.outcome import Outcome, Status
from mpsnet_cli.batch.plan import Planned, State, make_plan
from mpsnet_cli.batch.pool import (
    ATTEMPTS,
    Began,
    Died,
    Done,
    Event,
    Lost,
    Pool,
    Raised,
    Said,
    Work,
    work_off,
)
from mpsnet_cli.batch.report import REPORT_HTML, REPORT_JSON, Report
from mpsnet_cli.batch.unit import Models, Progress, Unit, Warned, make_worker, outcome_of
from mpsnet_cli.batch.workers import Share, count_cores, free_memory, share_out
from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.errors import InputError, MpsnetError, OutputError
from mpsnet_cli.job import Arguments, Existing, identity, part_of, read_manifest, state_of
from mpsnet_cli.model.config import WeightsInfo
from mpsnet_cli.model.inference import resolve_device, resolve_precision
from mpsnet_cli.tracking import find_detector
from mpsnet_cli.video import VideoInfo
from mpsnet_cli.weights import find_weights, read_info

if TYPE_CHECKING:
    from mpsnet_cli.batch.cluster import Cluster

UPLOAD_EVERY = 30.0  # s between uploads of the report
LOOK_EVERY = 2.0  # s between looks at what has landed
GUESSES = {"cpu": 5.0, "cuda": 40.0, "mps": 10.0}  # frames/s of a worker, until one has measured it

MakeWorker = Callable[[Models, Share], Work]
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    inputs: tuple[Path, ...]  # see `find_clips`
    out: Path
    arguments: Arguments = field(default_factory=Arguments)
    models: Models = field(default_factory=Models)
    device: str = "auto"
    existing: Existing = "same"  # see `run_clip`
    formats: tuple[str, ...] = ()  # to export
    recursive: bool = False
    workers: int | None = None  # None: as many as there is room for
    watch: bool = False  # wait for clips to come
    engine: Engine = "local"  # who works
    address: str | None = None  # of the Ray cluster; None: one that runs here, or is made for this
    url: str | None = None  # where results go, if `out` is only their mirror; see `storage`


@dataclass(frozen=True)
class Plan:
    """What there is to do, by whom, and how long it may take."""

    clips: Sequence[Planned]
    shares: Sequence[Share]
    rate: float  # frames/s of one worker
    is_guess: bool  # or else what results of these clips tell

    def seconds(self, planned: Planned) -> float:
        """Estimate the time for one clip, s, as if nothing of it were done."""
        return planned.frames / self.rate if planned.is_to_do else 0.0

    @property
    def total_seconds(self) -> float:
        """Estimate the time for all of them, s."""
        return sum(map(self.seconds, self.clips)) / len(self.shares)


@dataclass(frozen=True)
class Conclusion:
    """What became of a batch.

    unfinished: how many clips of the plan were not begun
    interrupted: whether the user ended it before its end
    no_room: what a clip says for which there was no room on the disk
    """

    outcomes: Sequence[Outcome]
    unfinished: int
    interrupted: bool = False
    no_room: str | None = None


class Listener:
    """Hears of what happens in a batch; the command line's show it."""

    def on_plan(self, plan: Plan) -> None:
        """React to clips that were looked at: all of them, or those that have just landed."""

    def on_start(self, name: str) -> None:
        """React to a clip that is begun."""

    def on_progress(self, name: str, stage: str, done: int, total: int | None) -> None:
        """React to progress within a stage of a clip."""

    def on_finish(self, outcome: Outcome) -> None:
        """React to a clip that was ended, well or badly, or had no need to be begun."""

    def on_warning(self, sentence: str) -> None:
        """React to something skipped, replaced or doubtful."""


def plan_batch(request: Request, listener: Listener) -> None:
    """Tell `listener` what `run_batch` would do, and write nothing. Raises InputError as that."""
    request = _placed(request)
    with _engine(request, None) as cluster, _interrupts() as go_on:
        scout = _Scout(request, listener.on_warning, go_on, cluster)
        plan = scout.plan(scout.find())
    if not go_on():
        raise KeyboardInterrupt
    listener.on_plan(plan)


def run_batch(
    request: Request, listener: Listener, *, make: MakeWorker = make_worker
) -> Conclusion:
    """Work on all clips that are not done yet, and keep the report of them.

    Ctrl-C and SIGTERM end it: workers are killed, and what they had done of their clips is kept for
    the next time. Raises InputError for inputs that mean nothing, OutputError where `out` cannot be
    written or another batch is at work in it, and MpsnetError where workers cannot be made ready.
    """
    request = _placed(request)
    seen = None if request.url else request.out
    with _alone(request.out), _engine(request, seen) as cluster, _interrupts() as go_on:
        return _Batch(request, listener, go_on, cluster).run(make)


def _placed(request: Request) -> Request:
    """Let results that go to a URL have a mirror here."""
    if request.watch and any(map(storage.url_of, request.inputs)):
        raise InputError("--watch looks at folders of this machine, not at URLs.")
    if url := storage.url_of(request.out):
        return replace(request, out=storage.mirror_of(url), url=url)
    return request


@contextmanager
def _engine(request: Request, seen: Path | None) -> Iterator[Cluster | None]:
    """Connect to the cluster that is to work, if any; its nodes must see the folder `seen`."""
    if request.engine == "local":
        yield None
        return
    from mpsnet_cli.batch.cluster import connected

    with connected(
        request.address, seen, device=request.device, workers=request.workers
    ) as cluster:
        yield cluster


class _Scout:
    """Finds clips and plans what is to be done with them."""

    def __init__(
        self,
        request: Request,
        warn: Callable[[str], None],
        go_on: Callable[[], bool],
        cluster: Cluster | None,
    ) -> None:
        self._request = request
        self._warn = warn
        self._go_on = go_on
        self._cluster = cluster
        self._base = common_folder(request.inputs)
        self.names: dict[Path, str] = {}

    def find(self) -> list[Path]:
        """Return the clips that are there now."""
        request = self._request
        return find_clips(request.inputs, recursive=request.recursive, warn=self._warn)

    def plan(self, clips: Sequence[Path]) -> Plan:
        """Name the clips and look at them."""
        request = self._request
        self.names = name_clips(clips, self._base, named=self.names)
        names = {clip: self.names[clip] for clip in clips}
        if request.url:
            for name in names.values():
                storage.mirror(f"{request.url}/{name}", request.out / name)
        if any(_is_begun(request.out / name) for name in names.values()):
            _ = self._ingredients  # what is wrong with them is not any clip's fault
        planned = make_plan(
            {clip: name for clip, name in names.items() if not storage.url_of(clip)},
            request.out,
            state_of=self._state_of,
            start=request.arguments.start,
            end=request.arguments.end,
            go_on=self._go_on,
        )
        planned += [
            self._look_at(url, c, name) for c, name in names.items() if (url := storage.url_of(c))
        ]
        planned = [replace(clip, is_to_do=self._is_to_do(clip)) for clip in planned]
        shares = self.share_out(sum(clip.is_to_do for clip in planned))
        rates = [rate for clip in planned if (rate := _measured_rate(clip.folder))]
        guess = GUESSES[torch.device(shares[0].device).type]
        return Plan(planned, shares, median(rates) if rates else guess, is_guess=not rates)

    def _look_at(self, url: str, clip: Path, name: str) -> Planned:
        """Plan a clip behind a URL, which only those read who work on it."""
        planned = Planned(clip, name, self._request.out / name)
        try:
            source = storage.source_of(url)
            state: State = "new"
            if manifest := read_manifest(planned.folder):
                weights, body, detector = self._ingredients
                arguments = self._request.arguments
                same = identity(None, arguments, weights=weights, body=body, detector=detector)
                is_done = state_of(planned.folder, same) == "done"
                state = "done" if is_done and manifest.get(storage.SOURCE) == source else "other"
        except MpsnetError as error:
            return replace(planned, sentence=error.message)
        return replace(planned, state=state, size=source["bytes"] or 0)

    def share_out(self, clips: int) -> list[Share]:
        """Share the machine between workers, or the cluster."""
        if self._cluster:
            if shortage := self._cluster.shortage():
                self._warn(shortage)
            shares = self._cluster.share_out()
            return shares if self._request.watch else shares[: max(1, clips)]
        return share_out(
            self._devices,
            clips=None if self._request.watch else clips,
            wanted=self._request.workers,
            cores=count_cores(),
            memory=free_memory(),
        )

    def _is_to_do(self, clip: Planned) -> bool:
        if clip.state == "done":
            return self._request.existing == "replace" or bool(self._request.formats)
        return clip.state != "broken"

    def _state_of(self, video: VideoInfo, folder: Path) -> State:
        if not _is_begun(folder):
            return "new"  # without reading the whole clip and the weights for it
        weights, body, detector = self._ingredients
        arguments = self._request.arguments
        return state_of(
            folder, identity(video, arguments, weights=weights, body=body, detector=detector)
        )

    @cached_property
    def _ingredients(self) -> tuple[WeightsInfo, BodyModel, Path | None]:
        """What results are made with, besides the clip."""
        models, arguments = self._request.models, self._request.arguments
        return (
            read_info(find_weights(models.weights)),
            load_body(models.body, path=models.smpl_path, gender=models.gender),
            None if arguments.boxes else find_detector(arguments.detector),
        )

    @cached_property
    def _devices(self) -> list[str]:
        device = resolve_device(self._request.device)
        resolve_precision(self._request.models.precision, device)  # or every worker would end by it
        if device.type == "cuda" and self._request.device in ("auto", "cuda"):
            return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        return [str(device)]


def _is_begun(folder: Path) -> bool:
    try:
        return folder.exists() or part_of(folder).exists()
    except OSError:  # as of a path too long: its worker will tell
        return False


def _measured_rate(folder: Path) -> float | None:
    """Return the frames/s that a result was made at."""
    rate: float = read_manifest(folder).get("frames_per_second", 0.0)
    return rate if rate > 0 else None


class _Batch:
    """One run of a batch."""

    def __init__(
        self,
        request: Request,
        listener: Listener,
        go_on: Callable[[], bool],
        cluster: Cluster | None,
    ) -> None:
        self._request = request
        self._cluster = cluster
        self._listener = listener
        self._go_on = go_on
        self._warned: set[str] = set()
        self._scout = _Scout(request, self._warn, go_on, cluster)
        self._landing = Landing()
        self._looked = -LOOK_EVERY  # when, as of time.monotonic
        self._waiting: deque[Unit] = deque()
        self._begun: dict[Unit, tuple[int, float]] = {}  # the attempt, and when it began
        self._outcomes: dict[str, Outcome] = {}
        self._no_room: str | None = None
        self._report = Report(request.out, arguments=_written(request), started=time.time())
        self._uploaded = -UPLOAD_EVERY  # when, as of time.monotonic

    def run(self, make: MakeWorker) -> Conclusion:
        """Plan, work, and keep the report."""
        watch = self._request.watch
        shares = self._scout.share_out(0) if watch else self._admit(self._scout.find())
        if self._request.url:  # a result that cannot be delivered is not worth making
            self._write_report()
            self._upload_report()
        try:
            with self._pool(make, shares) as pool:
                for event in work_off(
                    self._waiting,
                    pool,
                    go_on=self._go_on,
                    more=self._more,
                    attempts=1 if self._cluster else ATTEMPTS,  # Ray itself tries again
                ):
                    self._hear(event)
                running = pool.items
        except MpsnetError:
            with suppress(OutputError):  # there is one to tell already
                self._write_report()
            raise
        for unit in running:
            self._end(
                unit,
                "stopped",
                f"{storage.shown(unit.clip)} was stopped: the same command goes on with it.",
            )
        self._write_report()
        self._upload_report()
        outcomes, unfinished = list(self._outcomes.values()), self._unfinished
        interrupted = not self._go_on() and bool(running or unfinished)
        return Conclusion(outcomes, unfinished, interrupted, self._no_room)

    def _pool(self, make: MakeWorker, shares: Sequence[Share]) -> Any:
        """Return what is worked off: a `Pool`, or what can be used like it."""
        models = self._request.models
        if self._cluster is None:
            return Pool([partial(make, models, share) for share in shares])
        from mpsnet_cli.batch.cluster import RayPool

        return RayPool(self._cluster, make, models)

    def _more(self) -> bool:
        """Take up clips that have landed; say whether more may."""
        if self._no_room:
            self._waiting.clear()
            return False
        if self._request.watch and time.monotonic() - self._looked >= LOOK_EVERY:
            self._looked = time.monotonic()
            if landed := self._landing.take(self._scout.find()):
                self._admit(landed)
        return self._request.watch

    def _admit(self, clips: Sequence[Path]) -> Sequence[Share]:
        """Plan clips, settle those that need no work, and let the others wait for it."""
        plan = self._scout.plan(clips)
        self._listener.on_plan(plan)
        for planned in plan.clips:
            unit = self._unit(planned)
            if planned.is_to_do:
                self._waiting.append(unit)
            elif planned.state == "broken":
                self._end(unit, "failed", planned.sentence, planned.traceback)
            else:
                self._finish(outcome_of(unit, read_manifest(planned.folder)))
        return plan.shares

    def _unit(self, planned: Planned) -> Unit:
        request = self._request
        return Unit(
            planned.clip,
            planned.name,
            planned.folder,
            request.arguments,
            request.existing,
            request.formats,
            is_done=planned.state in ("done", "other") and request.existing != "replace",
            parts=self._parts(planned),
            url=request.url and f"{request.url}/{planned.name}",
        )

    def _parts(self, planned: Planned) -> int:
        """Say between how many tasks a clip is shared."""
        if self._cluster is None or not planned.is_to_do:
            return 1
        parts = self._cluster.parts_of(planned.frames)
        if parts > 1 and self._request.url:
            self._warn(
                "Long clips are not split: for that, --out must be a path that all nodes see."
            )
            return 1
        return parts

    def _hear(self, event: Began | Event | Lost) -> None:
        match event:
            case Began(unit, attempt):
                self._begun[unit] = attempt, time.monotonic()
                self._listener.on_start(unit.name)
            case Said(unit, Progress(stage, done, total)):
                self._listener.on_progress(unit.name, stage, done, total)
            case Said(unit, Warned(sentence, of_clip)):
                self._warn(f"{unit.name}: {sentence}" if of_clip else sentence)
            case Done(unit, outcome):
                self._no_room = outcome.sentence if outcome.status == "stopped" else self._no_room
                if outcome.folder and unit.url:
                    try:
                        storage.mirror(unit.url, unit.folder)
                    except MpsnetError as error:  # the report is without its strip
                        self._warn(error.message)
                self._finish(replace(outcome, attempts=self._begun[unit][0]))
            case Raised(unit, fault):
                self._end(unit, "failed", fault.sentence, fault.traceback)
            case Died(unit, how, ready):
                at = f"at work on {unit.name}" if ready else "before it was ready for work"
                self._warn(f"A process died {at} ({how}).")
            case Lost(unit, how):
                self._end(
                    unit,
                    "failed",
                    f"The process died twice at work on {storage.shown(unit.clip)} ({how}): "
                    "for want of memory, or because a decoder fails on the clip.",
                )

    def _end(
        self, unit: Unit, status: Status, sentence: str | None, traceback: str | None = None
    ) -> None:
        """Finish a clip that no worker returned from."""
        attempt, began = self._begun.get(unit, (1, time.monotonic()))
        self._finish(
            Outcome(
                unit.clip,
                unit.name,
                status,
                sentence,
                seconds=round(time.monotonic() - began, 3),
                attempts=attempt,
                traceback=traceback,
            )
        )

    def _finish(self, outcome: Outcome) -> None:
        self._outcomes[outcome.name] = outcome
        self._report.add(outcome)
        url = self._request.url
        shown = Path(f"{url}/{outcome.name}") if url and outcome.folder else outcome.folder
        self._listener.on_finish(replace(outcome, folder=shown))
        self._write_report()
        if time.monotonic() - self._uploaded >= UPLOAD_EVERY:
            self._uploaded = time.monotonic()
            try:
                self._upload_report()
            except OutputError as error:
                self._warn(error.message)

    def _write_report(self) -> None:
        self._report.write(unfinished=self._unfinished)

    def _upload_report(self) -> None:
        if self._request.url:
            for name in (REPORT_HTML, REPORT_JSON):
                storage.upload(self._request.out / name, f"{self._request.url}/{name}")

    @property
    def _unfinished(self) -> int:
        """How many clips have no outcome yet."""
        return len(self._scout.names.keys()) - len(self._outcomes)

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._listener.on_warning(sentence)


def _written(request: Request) -> dict[str, Any]:
    """Write down what was asked for, for the report."""
    facts = dataclasses.asdict(request)
    models, arguments = facts.pop("models"), facts.pop("arguments")
    facts["inputs"] = [storage.shown(path) for path in request.inputs]
    facts["out"] = storage.shown(Path(facts.pop("url") or request.out))
    return {**facts, **models, **arguments}


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other batches out of a folder."""
    lock = FileLock(out / LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"Another batch is at work in {out}: wait for it, or pass another --out."
        ) from error
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written ({error.strerror or error}): pass another --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM only be noted; yield what tells whether none has come."""
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.set()

    heard = [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        heard = []  # Python calls handlers in the main thread only
    before = {number: signal.getsignal(number) for number in heard}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as of a command in the background
            signal.signal(number, note)
    try:
        yield lambda: not came.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
