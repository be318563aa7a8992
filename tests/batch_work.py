"""What the batch's tests let worker processes do; light, as every process imports it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpsnet_cli.batch.fault import Fault
from mpsnet_cli.batch.plan import make_looker
from mpsnet_cli.batch.pool import Died, Done, Event, Make, Raised, Said, Tell, Work
from mpsnet_cli.errors import InputError, WeightsError


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


class NotUnpicklable(Exception):
    def __init__(self, one: str, *, two: str) -> None:
        super().__init__(one + two)


def obey(item: tuple[str, Any], tell: Tell) -> Any:
    """Do what an item says: (verb, object)."""
    verb, what = item
    if verb == "pid":
        return os.getpid()
    if verb == "double":
        return what * 2
    if verb == "say":
        for word in what:
            tell(word)
        return len(what)
    if verb == "sleep":
        tell(os.getpid())
        time.sleep(what)
        return what
    if verb == "hold the GIL":  # as long as no bytecode runs, no thread does
        tell(os.getpid())
        ctypes.PyDLL(None).sleep(what)
    if verb == "kill":
        os.kill(os.getpid(), what)
        time.sleep(60)
    if verb == "exit":
        os._exit(what)
    if verb == "leave":
        sys.exit(what)
    if verb == "once":  # dies, but not when it is tried again
        mark = Path(what)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "the second time"
    if verb == "raise":
        raise {"foreseen": InputError("It is odd."), "bug": ZeroDivisionError("by me"),
               "unpicklable": Unpicklable("one"), "not unpicklable": NotUnpicklable("a", two="b"),
               "surrogate": ValueError("\ud800")}[what]  # fmt: skip
    if verb == "return":
        return {"a lambda": lambda: None, "much": "x" * 3_000_000}[what]
    raise AssertionError(verb)


def make_obedient() -> Work:
    return obey


def make_and_count(folder: str) -> Work:
    """Leave a file for each process that is made ready."""
    (Path(folder) / str(os.getpid())).touch()
    return obey


def fail_to_make(error: str) -> Work:
    raise {"weights": WeightsError("The weights w are damaged."), "bug": ValueError("nobody knew")}[
        error
    ]


def die_while_making() -> Work:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_while_making_once(mark: str) -> Work:
    if Path(mark).exists():
        return obey
    Path(mark).touch()
    os._exit(7)


class Dies(BaseException):
    """Stands for the death of a process, in a PoolHere."""


class PoolHere:
    """Does in this process, at once, what a Pool does in others."""

    def __init__(self, makes: Sequence[Make]) -> None:
        self._makes = makes
        self._work: Work | None = None
        self.items: list[Any] = []

    def __enter__(self) -> PoolHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def has_room(self) -> bool:
        return not self.items

    def start(self, item: Any) -> None:
        self.items = [item]

    def events(self) -> Iterator[Event]:
        if not self.items:
            return
        (item,), said = self.items, []
        try:
            self._work = self._work or self._makes[0]()
            event: Event = Done(item, self._work(item, said.append))
        except Dies as death:
            event = Died(item, str(death), ready=True)
        except Exception as error:
            event = Raised(item, Fault.of(error))
        yield from (Said(item, message) for message in said)
        self.items = []
        yield event


def make_crashing_looker() -> Work:
    look = make_looker()

    def crash_or_look(clip: Path, tell: Tell) -> Any:
        if clip.stem == "bad":
            os.kill(os.getpid(), signal.SIGSEGV)
        return look(clip, tell)

    return crash_or_look


# What a worker of the whole batch is pretended to do, by the clip's name.

MANIFEST: dict[str, Any] = {
    "tool": {"name": "mpsnet-cli", "version": "0"},
    "complete": True,
    "arguments": {"start": None, "end": None},
    "frames": 10,
    "frames_per_second": 5.0,
    "people": [{"id": 1, "file": "person_01.npz", "frames": 10}],
    "weights": {"name": "w", "trained": True, "sha256": "0"},
    "body": {"name": "free-1", "sha256": "0"},
    "detector": {"boxes": "full"},
    "device": {"name": "cpu", "precision": "fp32"},
    "input": {"path": "clip.mp4", "bytes": 1, "sha256": "0"},
    "video": {"width": 64, "height": 48, "fps": 25.0, "frame_count": 10, "duration": 0.4},
    "seconds": {"detect": 1.0},
    "warnings": [],
    "overlay": None,
    "meshes": None,
}


def make_pretending(models: Any, share: Any) -> Work:  # noqa: ARG001
    return pretend


def pretend(unit: Any, tell: Tell) -> Any:
    from mpsnet_cli.batch.unit import Progress, Warned, outcome_of

    stem, manifest = unit.clip.stem, dict(MANIFEST)
    mark = unit.clip.with_suffix(".mark")
    tell(Warned("The weights are pretended.", of_clip=False))
    tell(Warned(f"Its name is {stem}.", of_clip=True))
    tell(Progress("detect", 3, 10))
    if stem == "dies" or (stem == "dies_once" and not mark.exists()):
        mark.touch()
        raise Dies("signal 9")
    if stem.startswith("slow"):
        unit.folder.with_name(f"{stem}.pid").write_text(str(os.getpid()))
        time.sleep(100)
    if stem == "nobody":
        manifest["people"] = []
    if stem == "part":
        manifest["complete"] = False
    if stem == "fails":
        raise InputError("It is odd.")
    if stem == "bug":
        raise ZeroDivisionError("by me")
    outcome = outcome_of(unit, manifest)
    if stem == "full":
        sentence = "No space left on device."
        return replace(outcome, status="stopped", sentence=sentence, folder=None, manifest=None)
    return outcome
