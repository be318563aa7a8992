"""The same units on a Ray cluster.

A clip is a Ray task, which asks for processors or a part of a GPU and for memory; Ray decides where
it runs, and runs it once more if its process or its node is lost. Processes live on between tasks,
and the models in them. A `RayPool` is worked off as a `Pool` of local workers is.

A long clip is shared between tasks: one finds the people, then each of several runs the backbone
over its part of the crops, and the last works on the clip as ever, and finds its features kept. The
parts need not overlap and are never blended, as what they keep is what the last task would compute:
its result is that of an unshared clip to the last byte, on devices of one kind. For this, all nodes
must see the folder of the results.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from mpsnet_cli._version import __version__
from mpsnet_cli.batch.fault import Fault
from mpsnet_cli.batch.mailbox import Mailbox, look
from mpsnet_cli.batch.pool import TICK, Began, Died, Done, Event, Raised, Said
from mpsnet_cli.batch.unit import Models, Progress, Unit, Warned
from mpsnet_cli.batch.workers import MEMORY, PER_GPU, Share
from mpsnet_cli.errors import DeviceError, InputError, MpsnetError, OutputError

os.environ.setdefault("RAY_task_oom_retries", "1")  # else Ray begins such a task again for ever
try:
    import ray
    from ray.exceptions import (
        GetTimeoutError,
        LocalRayletDiedError,
        NodeDiedError,
        OutOfMemoryError,
        RayError,
        WorkerCrashedError,
    )
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode
except ImportError as error:
    raise InputError(
        f"A cluster needs Ray, which is not there ({error}): pip install 'mpsnet-cli[ray]'."
    ) from error

SPLIT = 4500  # frames in a part of a long clip; one of fewer than two parts is not shared
RETRIES = 1  # of a task whose process or node is lost, by Ray itself
NODES = 3  # that may be lost at work on a clip, after Ray's retries, until it is given up
PATIENCE = 120.0  # s that a lost node's processes may take to let go of a clip
COUNT_EVERY = 2.0  # s between looks at how large the cluster is
ANSWER = 10.0  # s, for a cluster to take a connection
ANSWER_WITHIN = 300.0  # s, for a node to answer; on a slow disk, importing takes its time
CLOSE_WITHIN = 20.0  # s, for cancelled tasks to end

MakeWorker = Callable[[Models, Share], Any]  # what `unit.make_worker` is


@dataclass(frozen=True)
class Needs:
    """What one task takes of a node."""

    cpus: int
    gpus: float

    def fit(self, node: dict[str, float]) -> int:
        """Count how many tasks a node with these resources has room for."""
        counts = [node.get("CPU", 0) / self.cpus, node.get("memory", 0) / MEMORY]
        if self.gpus:
            counts.append(node.get("GPU", 0) / self.gpus)
        return int(min(counts))


@contextmanager
def connected(
    address: str | None, out: Path | None, *, device: str, workers: int | None
) -> Iterator[Cluster]:
    """Be part of a cluster: the one at `address`, or one that runs here, or else one made for this.

    All nodes must see `out`, unless it is None. Raises MpsnetError for a cluster that cannot be
    used.
    """
    mine = not ray.is_initialized()
    if mine:
        _knock(address)
        try:
            ray.init(
                address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR
            )
        except ConnectionError as error:
            raise InputError(
                f"Ray cannot be used: {_last_line(error)} If the cluster asks for a token, set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here too."
            ) from error
        except (ValueError, RuntimeError) as error:
            raise InputError(f"Ray cannot be used: {_last_line(error)}") from error
        _hush()
    try:
        cluster = Cluster(device, workers)
        cluster.check(out)
        yield cluster
    finally:
        if mine:
            ray.shutdown()


class Cluster:
    """The nodes that there are now, and what a task takes of them."""

    def __init__(self, device: str, workers: int | None) -> None:
        nodes = self._nodes()
        if device not in ("auto", "cpu", "cuda"):
            raise DeviceError(f"{device} is one machine's: on a cluster, pass cpu, cuda or auto.")
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
        if device == "cuda" and not with_gpu:
            raise DeviceError("No node of the cluster has a GPU: pass --device cpu, or add one.")
        self._workers = workers
        self._counted = -COUNT_EVERY
        self._slots = 1
        if with_gpu and device != "cpu":
            each = min(node.get("CPU", 1) / node["GPU"] for node in with_gpu) / PER_GPU
            self.needs = Needs(max(1, int(each)), 1 / PER_GPU)
        else:
            each = sum(node.get("CPU", 0) for node in nodes) / (workers or math.inf)
            most = max((node.get("CPU", 0) for node in nodes), default=1)
            self.needs = Needs(max(1, int(min(each, most))), 0)

    @property
    def slots(self) -> int:
        """How many tasks the cluster has room for, or may have as --workers says; one at least."""
        if time.monotonic() - self._counted >= COUNT_EVERY:
            self._counted = time.monotonic()
            self._slots = sum(map(self.needs.fit, self._nodes()))
        return max(1, min(self._slots, self._workers or self._slots))

    def shortage(self) -> str | None:
        """Say that no node is large enough for a task, if so: all waits for one that is."""
        if any(map(self.needs.fit, self._nodes())):
            return None
        gpus = f", GPUs: {self.needs.gpus:g}" * bool(self.needs.gpus)
        return (
            f"No node of the cluster has what a task takes (processors: {self.needs.cpus}, memory: "
            f"{MEMORY / 1e9:g} GB{gpus}): clips wait until one joins it."
        )

    def share_out(self) -> list[Share]:
        """Say what the tasks that run at once get."""
        return [Share("cuda" if self.needs.gpus else "cpu", self.needs.cpus)] * self.slots

    @staticmethod
    def parts_of(frames: int) -> int:
        """Say between how many tasks a clip is shared, if it can be."""
        return max(1, frames // SPLIT)

    def check(self, out: Path | None) -> None:
        """Ask all nodes whether they can do the work. Raises MpsnetError if one cannot."""
        token = out and (out / f".{uuid.uuid4().hex}.seen").resolve()
        try:
            if token:
                token.parent.mkdir(parents=True, exist_ok=True)
                token.touch()
            answers = {
                node["NodeManagerAddress"]: ray.remote(look)
                .options(num_cpus=0, scheduling_strategy=OnNode(node["NodeID"], soft=True))
                .remote(token)
                for node in ray.nodes()
                if node["Alive"]
            }
            for name, answer in answers.items():
                _judge(name, answer, out)
        except OSError as error:
            raise OutputError(
                f"{out} cannot be written ({error.strerror or error}): pass another --out."
            ) from error
        finally:
            if token:
                token.unlink(missing_ok=True)

    @staticmethod
    def _nodes() -> list[dict[str, float]]:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _judge(name: str, answer: Any, out: Path | None) -> None:
    try:
        version, sees = ray.get(answer, timeout=ANSWER_WITHIN)
    except GetTimeoutError:
        return  # it is busy; others are at work there
    except (WorkerCrashedError, NodeDiedError):
        return  # Ray knows by now
    except RayError as error:
        raise MpsnetError(
            f"The node {name} cannot work: {_last_line(error)} "
            "Install mpsnet-cli there as it is here."
        ) from error
    if version != __version__:
        raise MpsnetError(
            f"The node {name} has mpsnet-cli {version}, and this machine {__version__}: "
            "install the same on all."
        )
    if not sees:
        raise OutputError(
            f"The node {name} does not see {out}: pass an --out on storage that all nodes share, "
            "or a URL."
        )


class _Task(NamedTuple):
    """A unit on the cluster: `result` comes in the end, `others` before it."""

    unit: Unit
    result: Any
    others: list[Any]


class RayPool:
    """Works on units in a cluster; to be worked off as a `Pool`, but Ray itself tries again.

    A process that cannot load the models counts as one that died of its clip if it dies of it.
    """

    def __init__(self, cluster: Cluster, make: MakeWorker, models: Models) -> None:
        self._cluster = cluster
        self._tasks: dict[int, _Task] = {}
        self._numbers = itertools.count()
        self._begun: Counter[Unit] = Counter()
        self._nodes: Counter[Unit] = Counter()  # that were lost at work on it
        self._progress: dict[int, dict[int, tuple[int, int]]] = {}  # crops done in shares, of all
        # With max_calls, a process does not end with its first task on a GPU, and the models too.
        tasks = (_find, _share, _work)
        self._remote: dict[Any, Any] = {each: ray.remote(max_calls=0)(each) for each in tasks}
        here = OnNode(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(Mailbox).options(
            num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
        )
        self._mailbox: Any = mailbox.remote()
        self._desk = _Desk(self._mailbox, make, models, cluster.needs.cpus, Path.cwd())

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the tasks, whatever they are at."""
        for task in self._tasks.values():
            self._cancel(task)
        results = [ref for task in self._tasks.values() for ref in (*task.others, task.result)]
        if results:
            ray.wait(results, num_returns=len(results), timeout=CLOSE_WITHIN)
        ray.kill(self._mailbox)

    @property
    def has_room(self) -> bool:
        """Whether a node has nothing to do; one unit more waits, so that a cluster may grow."""
        return len(self._tasks) <= self._cluster.slots

    @property
    def items(self) -> list[Unit]:
        """What is being worked on."""
        return [task.unit for task in self._tasks.values()]

    def start(self, unit: Unit) -> None:
        """Give a unit to Ray."""
        number = next(self._numbers)
        sent = replace(unit, patience=PATIENCE)
        shares = []
        if unit.parts > 1:
            job = self._submit(_find, sent, number)
            share = range(unit.parts)
            shares = [job, *(self._submit(_share, sent, number, job, each) for each in share)]
        self._progress[number] = {}
        # Of the shares, only their end is waited for.
        self._tasks[number] = _Task(unit, self._submit(_work, sent, number, *shares), shares)

    def events(self) -> Iterator[Event | Began]:
        """Wait a tick at most and yield what happened. Raises MpsnetError as `Pool.events` does."""
        if not self._tasks:
            time.sleep(TICK)
            return
        results = {task.result: number for number, task in self._tasks.items()}
        over, _ = ray.wait(list(results), num_returns=len(results), timeout=TICK)
        yield from self._said()  # after the look at what is over: all that it said is there
        for result in over:
            number = results[result]
            event = self._end(self._tasks[number])
            del self._tasks[number], self._progress[number]
            yield event

    def _submit(self, function: Callable[..., Any], unit: Unit, number: int, *rest: Any) -> Any:
        needs = self._cluster.needs
        # A process that lives on may be lent another GPU next: it must see all of them.
        see_all = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
        task = self._remote[function].options(
            name=f"{function.__name__.strip('_')} {unit.name}",
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=MEMORY,
            max_retries=RETRIES,
            **({"runtime_env": see_all} if needs.gpus else {}),
        )
        return task.remote(self._desk, unit, number, *rest)

    def _said(self) -> Iterator[Said | Began]:
        try:
            messages = ray.get(self._mailbox.take.remote())
        except RayError:
            return  # it is begun anew: some progress will not be shown
        for number, message in map(pickle.loads, messages):
            if number not in self._tasks:
                continue  # a lost node's process goes on until it notices
            unit = self._tasks[number].unit
            match message:
                case "begun":
                    self._begun[unit] += 1
                    if self._begun[unit] > 1:
                        yield Began(unit, self._begun[unit])
                        yield Said(unit, Warned("Its process or its node was lost: Ray begins it "
                                                "again.", of_clip=True))  # fmt: skip
                case _Shared(share, stage, done, total):
                    shares = self._progress[number]
                    shares[share] = done, total or 0
                    dones, totals = zip(*shares.values(), strict=True)
                    yield Said(unit, Progress(stage, sum(dones), max(totals)))
                case _:
                    yield Said(unit, message)

    def _end(self, task: _Task) -> Event:
        unit = task.unit
        try:
            kind, value = ray.get(task.result)
        except (NodeDiedError, LocalRayletDiedError):
            self._cancel(task)
            self._nodes[unit] += 1
            return Died(unit, "its node was lost", ready=self._nodes[unit] >= NODES)
        except (WorkerCrashedError, OutOfMemoryError) as error:
            self._cancel(task)
            short = isinstance(error, OutOfMemoryError)
            how = "Ray ended it as memory ran out" if short else "Ray's logs may tell why"
            return Died(unit, how, ready=True)
        except RayError as error:
            self._cancel(task)
            return Raised(unit, Fault.of(error))
        if kind == _UNREADY:
            raise MpsnetError(value.sentence)
        if kind == _RAISED:
            return Raised(unit, value)
        # Where it ran, the clip may have lain elsewhere.
        folder = value.folder and unit.folder
        return Done(unit, replace(value, clip=unit.clip, folder=folder))

    def _cancel(self, task: _Task) -> None:
        for ref in (*task.others, task.result):
            with suppress(RayError, ValueError):  # it has ended
                ray.cancel(ref, force=True)


def _knock(address: str | None) -> None:
    """Raise InputError where nobody answers: Ray itself would go on trying for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        return  # a local one, or ray://…
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except OSError as error:
        raise InputError(
            f"There is no Ray cluster at {address} ({error.strerror or error}): start one with "
            "`ray start --head`, and pass its --address."
        ) from error


def _hush() -> None:
    """Keep Ray from printing raylets' logs when a node is lost: the batch tells of it."""
    with suppress(ImportError, KeyError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as printing

        printing.remove_handler("ray_print_logs")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].rstrip(".") + "."


# What follows runs on the nodes.

_DONE, _RAISED, _UNREADY = "done", "raised", "unready"
_BEGUN = "begun"  # a message


class _Shared(NamedTuple):
    """A message: how far a share of a unit is."""

    share: int
    stage: str
    done: int
    total: int | None


class _Desk(NamedTuple):
    """What tasks have in common."""

    mailbox: Any
    make: MakeWorker
    models: Models
    threads: int
    cwd: Path  # what the user's relative paths are relative to


_workers: dict[Any, Any] = {}  # the one of this process, made once


def _work(desk: _Desk, unit: Unit, number: int, *_: Any) -> tuple[str, Any]:
    """Return what became of a unit."""
    with _telling(desk, number) as tell:
        tell(_BEGUN, wait=True)  # so that it is heard even if it is all that this process tells
        try:
            worker = _worker(desk)
        except Exception as error:
            return _UNREADY, Fault.of(error)
        try:
            return _DONE, worker(unit, tell)
        except Exception as error:
            return _RAISED, Fault.of(error)


def _find(desk: _Desk, unit: Unit, number: int) -> dict[str, Any] | None:
    """Find the people of a clip; return the job that its shares belong to."""
    with _telling(desk, number) as tell, suppress(Exception):  # `_work` meets it too, and tells
        job: dict[str, Any] | None = _worker(desk).keep_tracks(unit, tell)
        return job
    return None


def _share(desk: _Desk, unit: Unit, number: int, job: dict[str, Any] | None, share: int) -> None:
    """Compute a share of a clip's features."""
    if job is None:
        return
    with _telling(desk, number) as tell, suppress(Exception):  # `_work` meets it too, and tells

        def tell_share(message: Any) -> None:
            if isinstance(message, Progress):
                tell(_Shared(share, *message))

        _worker(desk).keep_share(unit, job, share, tell_share)


@contextmanager
def _telling(desk: _Desk, number: int) -> Iterator[Callable[..., None]]:
    """Yield what sends messages to the batch; in the end they have all come."""
    last: list[Any] = []

    def tell(message: Any, *, wait: bool = False) -> None:
        last[:] = [desk.mailbox.put.remote(pickle.dumps((number, message)))]
        if wait:
            ray.get(last)

    try:
        yield tell
    finally:
        with suppress(RayError):  # they were only messages
            ray.get(last)


def _worker(desk: _Desk) -> Any:
    """Return this process's worker, made ready."""
    device = _device()
    key = (desk.make, desk.models, device, desk.threads)
    if key not in _workers:
        with suppress(OSError):  # all paths may be absolute, or URLs
            os.chdir(desk.cwd)
        _workers.clear()
        _workers[key] = desk.make(desk.models, Share(device, desk.threads))
    return _workers[key]


def _device() -> str:
    """Say which device Ray lends to this task."""
    lent = ray.get_gpu_ids()
    if not lent:
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"cuda:{visible.split(',').index(str(lent[0])) if visible else lent[0]}"
