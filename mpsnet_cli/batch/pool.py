"""Processes that each work on one item at a time, and whose deaths hurt nothing else.

Every worker is a process pool of its own, with one process and one item in it: a pool that breaks
then tells which item broke it, and leaves the others alone. A worker is made ready once, by a
function that returns what does its work:

    with Pool([make] * 4) as pool:
        for event in work_off(deque(items), pool):
            ...

Worker processes do not hear Ctrl-C, which a terminal sends to them too, and end with their parent,
whatever it dies of.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from mpsnet_cli.batch.fault import Fault
from mpsnet_cli.errors import MpsnetError

TICK = 0.1  # s between looks at what the workers say
ATTEMPTS = 2  # that an item is given, as far as processes die of it
MAX_STILLBORN = 2  # processes in a row that may die before they are ready, until none is tried

Tell = Callable[[Any], None]  # takes a message for the parent, anything that can be pickled
Work = Callable[[Any, Tell], Any]  # takes an item, returns its result
Make = Callable[[], Work]  # gets a process ready; is pickled, unlike what it returns

SPAWN = multiprocessing.get_context("spawn")  # a copy of a process that uses CUDA does not work


@dataclass(frozen=True)
class Said:
    """A message came from the work on an item."""

    item: Any
    message: Any


@dataclass(frozen=True)
class Done:
    """An item's work returned."""

    item: Any
    result: Any


@dataclass(frozen=True)
class Raised:
    """An item's work raised an exception; its process lives on."""

    item: Any
    fault: Fault


@dataclass(frozen=True)
class Died:
    """A process died; another takes its place when there is work for it."""

    item: Any  # what it worked on, or would have
    how: str  # such as "signal 9"
    ready: bool  # whether it had begun with the item, which may be what killed it


@dataclass(frozen=True)
class Began:
    """An item was given to a worker, for the first or another time."""

    item: Any
    attempt: int  # 1 for the first


@dataclass(frozen=True)
class Lost:
    """An item was given up, as processes died of it."""

    item: Any
    how: str


Ended = Done | Raised | Died
Event = Said | Ended


def work_off(
    waiting: deque[Any],
    pool: Pool,
    *,
    go_on: Callable[[], bool] = lambda: True,
    more: Callable[[], bool] = lambda: False,
    attempts: int = ATTEMPTS,
) -> Iterator[Began | Event | Lost]:
    """Work on the items that wait, which are taken out, and yield all that happens.

    An item of which a process died waits again, at the end, and is lost if that happens `attempts`
    times.
    Ends when nothing is left, unless `more`, asked every tick, says that more may come; it may put
    it there. Ends at once when `go_on` says no: then `pool.items` tells what was not finished.
    Raises MpsnetError as `Pool.events` does.
    """
    deaths: Counter[Any] = Counter()
    while go_on() and (more() or waiting or pool.items):
        while waiting and pool.has_room:
            item = waiting.popleft()
            pool.start(item)
            yield Began(item, deaths[item] + 1)
        for event in pool.events():
            yield event
            if not isinstance(event, Died):
                continue
            deaths[event.item] += event.ready
            if not event.ready:
                waiting.appendleft(event.item)
            elif deaths[event.item] < attempts:
                waiting.append(event.item)
            else:
                del deaths[event.item]
                yield Lost(event.item, event.how)


class Pool:
    """Some workers, each made ready by its own function when there first is work for it."""

    def __init__(self, makes: Sequence[Make]) -> None:
        self._slots = [_Slot(make) for make in makes]

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill the processes, whatever they are at."""
        for slot in self._slots:
            slot.kill()

    @property
    def has_room(self) -> bool:
        """Whether a worker has nothing to do."""
        return any(not slot.busy for slot in self._slots)

    @property
    def items(self) -> list[Any]:
        """What is being worked on."""
        return [slot.item for slot in self._slots if slot.busy]

    def start(self, item: Any) -> None:
        """Give an item to a worker that has nothing to do."""
        idle = [slot for slot in self._slots if not slot.busy]
        min(idle, key=lambda slot: slot.process is None).start(item)

    def events(self) -> Iterator[Event]:
        """Wait a tick at most and yield what happened.

        Raises MpsnetError where a worker cannot be made ready, or where the processes of all died
        before they were.
        """
        busy = [slot for slot in self._slots if slot.busy]
        if busy:
            wait([slot.future for slot in busy], TICK, FIRST_COMPLETED)
        else:
            time.sleep(TICK)
        for slot in busy:
            over = slot.future.done()  # asked first: then all that it said is there
            for message in slot.said():
                yield Said(slot.item, message)
            if over:
                yield self._end(slot)

    def _end(self, slot: _Slot) -> Ended:
        event = slot.end()
        if slot.stillborn >= MAX_STILLBORN:
            self._slots.remove(slot)
        if not self._slots:
            assert isinstance(event, Died)
            raise MpsnetError(
                f"The worker processes died ({event.how}) before they were ready, as a rule for "
                "want of memory: pass fewer --workers."
            )
        return event


class _Slot:
    """The place of one worker: its process, and the item that it works on."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self.item: Any = None
        self.busy = False
        self.stillborn = 0  # processes in a row that died before they were ready
        self.process: multiprocessing.process.BaseProcess | None = None
        self.future: Future[Any]
        self._ready: Future[Fault | None]
        self._executor: ProcessPoolExecutor
        self._messages: Connection

    def start(self, item: Any) -> None:
        """Begin with an item, in a new process if need be."""
        if self.process is None:
            self._spawn()
        self.item, self.busy = item, True
        try:
            self.future = self._executor.submit(_work, item)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.kill()
            self.start(item)

    def said(self) -> Iterator[Any]:
        """Yield the messages that have come."""
        try:
            while self._messages.poll():
                yield self._messages.recv()
        except (EOFError, OSError):
            return  # it died

    def end(self) -> Ended:
        """Tell what became of the item. Raises MpsnetError where the process cannot be ready."""
        item, self.item, self.busy = self.item, None, False
        if self._ready.exception():
            self.stillborn += 1
            return Died(item, self.kill(), ready=False)
        if fault := self._ready.result():
            raise MpsnetError(fault.sentence)
        self.stillborn = 0
        try:
            done, result = self.future.result()
        except BrokenProcessPool:
            return Died(item, self.kill(), ready=True)
        except Exception as error:  # what was to be sent back cannot be pickled
            return Raised(item, Fault.of(error))
        return Done(item, result) if done else Raised(item, result)

    def kill(self) -> str:
        """End the process, if it has not ended yet, and tell how it ended."""
        if self.process is None:
            return ""
        self.process.kill()
        self._executor.shutdown(cancel_futures=True)
        self._messages.close()
        code = self.process.exitcode
        self.process = None
        return f"signal {-code}" if code and code < 0 else f"exit code {code}"

    def _spawn(self) -> None:
        others = set(multiprocessing.active_children())
        try:
            self._messages, theirs = SPAWN.Pipe(duplex=False)
            self._executor = ProcessPoolExecutor(1, SPAWN, _begin, (theirs,))
            with _deaf():
                self._ready = self._executor.submit(_prepare, self.make)
        except OSError as error:
            raise MpsnetError(
                f"No worker process can be started ({error.strerror}): pass fewer --workers."
            ) from error
        theirs.close()  # so that it ends with the process that writes to it
        (self.process,) = set(multiprocessing.active_children()) - others


@contextmanager
def _deaf() -> Iterator[None]:
    """Let processes that are begun here never hear Ctrl-C, nor what they begin themselves."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where `_begin` must do
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# What follows runs in the worker processes.

_tell: Tell
_do: Work | None = None


def _begin(messages: Connection) -> None:
    global _tell
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tell = messages.send


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _prepare(make: Make) -> Fault | None:
    global _do
    try:
        _do = make()
    except BaseException as error:
        return Fault.of(error)
    return None


def _work(item: Any) -> tuple[bool, Any]:
    """Return whether the work returned, and what; else what it raised."""
    try:
        assert _do is not None
        return True, _do(item, _tell)
    except BaseException as error:
        return False, Fault.of(error)
