from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import batch_work
import pytest

from mpsnet_cli.batch.pool import (
    Began,
    Died,
    Done,
    Event,
    Lost,
    Make,
    Pool,
    Raised,
    Said,
    work_off,
)
from mpsnet_cli.errors import MpsnetError

TESTS = Path(__file__).parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows has no signals")


def run(items: list[Any], makes: list[Make] | None = None) -> list[Event]:
    """Work on items as they find room, and return all that happened."""
    events: list[Event] = []
    waiting = list(items)
    with Pool(makes or [batch_work.make_obedient]) as pool:
        while waiting or pool.items:
            while waiting and pool.has_room:
                pool.start(waiting.pop(0))
            events += pool.events()
    return events


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_results_messages_and_their_order() -> None:
    events = run([("double", 21), ("say", ["a", "b", "c"]), ("double", "x")])
    said = ("say", ["a", "b", "c"])
    assert events == [
        Done(("double", 21), 42),
        *(Said(said, word) for word in "abc"),
        Done(said, 3),
        Done(("double", "x"), "xx"),
    ]


def test_a_worker_is_made_once_and_all_of_them_work(tmp_path: Path) -> None:
    make = partial(batch_work.make_and_count, str(tmp_path))
    events = run([("sleep", 0.5)] * 4, [make, make])
    assert len([event for event in events if isinstance(event, Done)]) == 4
    assert len(list(tmp_path.iterdir())) == 2
    assert len({event.message for event in events if isinstance(event, Said)}) == 2


@pytest.mark.parametrize(
    ("item", "how"),
    [
        pytest.param(("kill", 9), "signal 9", marks=POSIX),
        pytest.param(("kill", 11), "signal 11", marks=POSIX),
        (("exit", 0), "exit code 0"),
        (("exit", 3), "exit code 3"),
    ],
)
def test_a_death_is_told_and_the_others_live(item: tuple[str, int], how: str) -> None:
    makes = [batch_work.make_obedient] * 2
    events = run([item, ("double", 1), ("double", 2), ("double", 3)], makes)
    assert [event for event in events if isinstance(event, Died)] == [Died(item, how, ready=True)]
    done = [event.result for event in events if isinstance(event, Done)]
    assert sorted(done) == [2, 4, 6]


def test_the_next_item_finds_a_new_process() -> None:
    first, second = run([("exit", 1), ("double", 2)])
    assert isinstance(first, Died)
    assert second == Done(("double", 2), 4)


def test_exceptions_of_every_kind() -> None:
    kinds = ["foreseen", "bug", "unpicklable", "not unpicklable", "surrogate"]
    events = run([("pid", 0), *(("raise", kind) for kind in kinds), ("leave", "now"), ("pid", 0)])
    faults = [event.fault for event in events if isinstance(event, Raised)]
    assert [fault.sentence for fault in faults] == [
        "It is odd.",
        "ZeroDivisionError: by me",
        "batch_work.Unpicklable: one",
        "batch_work.NotUnpicklable: ab",
        "ValueError: \ud800",
        "SystemExit: now",
    ]
    assert faults[0].traceback is None
    assert "raise {" in str(faults[1].traceback)
    assert isinstance(events[0], Done)
    assert events[0] == events[-1]  # all in one process


def test_results_that_cannot_be_sent_and_big_ones() -> None:
    lambda_, much, after = run([("return", "a lambda"), ("return", "much"), ("double", 1)])
    assert isinstance(lambda_, Raised)
    assert "pickle" in lambda_.fault.sentence
    assert isinstance(much, Done)
    assert len(much.result) == 3_000_000
    assert after == Done(("double", 1), 2)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [("weights", "The weights w are damaged."), ("bug", "ValueError: nobody knew")],
)
def test_a_worker_that_cannot_be_made_ready_ends_it(error: str, sentence: str) -> None:
    with pytest.raises(MpsnetError) as caught:
        run([("double", 1)], [partial(batch_work.fail_to_make, error)])
    assert caught.value.message == sentence


@POSIX
def test_deaths_before_work_begins_end_it_at_last() -> None:
    with Pool([batch_work.die_while_making]) as pool:
        pool.start("it")
        assert list(_until_ended(pool)) == [Died("it", "signal 9", ready=False)]
        pool.start("it")
        with pytest.raises(MpsnetError) as caught:
            list(_until_ended(pool))
    assert "signal 9" in caught.value.message
    assert "--workers" in caught.value.message


@POSIX
def test_a_slot_whose_processes_die_at_once_is_given_up() -> None:
    done: list[int] = []
    waiting = [("double", number) for number in range(3)]
    with Pool([batch_work.die_while_making, batch_work.make_obedient]) as pool:
        while len(done) < 3:
            while waiting and pool.has_room:
                pool.start(waiting.pop())
            for event in pool.events():
                if isinstance(event, Died):
                    waiting.append(event.item)
                if isinstance(event, Done):
                    done.append(event.result)
    assert sorted(done) == [0, 2, 4]


def test_one_death_before_work_begins_is_forgiven(tmp_path: Path) -> None:
    make = partial(batch_work.die_while_making_once, str(tmp_path / "mark"))
    with Pool([make]) as pool:
        pool.start(("double", 1))
        events = list(_until_ended(pool))
        assert events == [Died(("double", 1), "exit code 7", ready=False)]
        pool.start(("double", 1))
        assert list(_until_ended(pool)) == [Done(("double", 1), 2)]


@POSIX
def test_a_worker_that_dies_idle_is_replaced() -> None:
    with Pool([batch_work.make_obedient]) as pool:
        pool.start(("pid", 0))
        (event,) = _until_ended(pool)
        assert isinstance(event, Done)
        os.kill(event.result, signal.SIGKILL)
        wait_until(lambda: not is_alive(event.result))
        time.sleep(0.5)  # until its executor knows too
        pool.start(("double", 4))
        assert list(_until_ended(pool)) == [Done(("double", 4), 8)]


@POSIX
@pytest.mark.parametrize("verb", ["sleep", "hold the GIL"])
def test_leaving_kills_what_is_running(verb: str) -> None:
    with Pool([batch_work.make_obedient] * 2) as pool:
        pool.start((verb, 100))
        pool.start((verb, 101))
        pids = [_first_message(pool), _first_message(pool)]
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert not any(map(is_alive, pids))


@POSIX
def test_leaving_kills_what_is_only_beginning() -> None:
    for delay in (0, 0.05, 0.2, 0.5):
        with Pool([batch_work.make_obedient]) as pool:
            pool.start(("sleep", 100))
            time.sleep(delay)


PARENT = """
import batch_work, os, time
from mpsnet_cli.batch.pool import Pool, Said

if __name__ == "__main__":
    with Pool([batch_work.make_obedient] * 2) as pool:
        pool.start(("sleep", 100))
        pool.start(("sleep", 100))
        while True:
            for event in pool.events():
                if isinstance(event, Said):
                    print(event.message, flush=True)
"""


@POSIX
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    with subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(is_alive, pids))
        parent.kill()
        wait_until(lambda: not any(map(is_alive, pids)))


@POSIX
def test_workers_do_not_hear_an_interrupt_and_neither_do_their_children() -> None:
    with Pool([batch_work.make_obedient]) as pool:
        pool.start(("sleep", 1))
        os.kill(_first_message(pool), signal.SIGINT)
        assert list(_until_ended(pool)) == [Done(("sleep", 1), 1)]


def _first_message(pool: Pool) -> int:
    while True:
        for event in pool.events():
            assert isinstance(event, Said), event
            return int(event.message)


def _until_ended(pool: Pool) -> Iterator[Event]:
    while pool.items:
        yield from pool.events()


def test_work_off_tries_an_item_again_and_then_gives_it_up(tmp_path: Path) -> None:
    once, exits = ("once", str(tmp_path / "mark")), ("exit", 5)
    with Pool([batch_work.make_obedient]) as pool:
        events = list(work_off(deque([exits, once, ("double", 1)]), pool))
    assert events == [
        Began(exits, 1),
        Died(exits, "exit code 5", ready=True),
        Began(once, 1),
        Died(once, "signal 9", ready=True),
        Began(("double", 1), 1),
        Done(("double", 1), 2),
        Began(exits, 2),
        Died(exits, "exit code 5", ready=True),
        Lost(exits, "exit code 5"),
        Began(once, 2),
        Done(once, "the second time"),
    ]


def test_work_off_does_not_blame_an_item_for_a_death_before_it(tmp_path: Path) -> None:
    make = partial(batch_work.die_while_making_once, str(tmp_path / "mark"))
    with Pool([make]) as pool:
        events = list(work_off(deque([("double", 1)]), pool))
    assert events[-2:] == [Began(("double", 1), 1), Done(("double", 1), 2)]


def test_work_off_takes_more_and_stops_when_told() -> None:
    waiting: deque[Any] = deque()
    landing = iter([("double", 1), None, ("double", 2), ("sleep", 100)])
    begun: list[Any] = []

    def more() -> bool:
        if item := next(landing, None):
            waiting.append(item)
        return True

    with Pool([batch_work.make_obedient]) as pool:
        for event in work_off(waiting, pool, go_on=lambda: len(begun) < 3, more=more):
            if isinstance(event, Began):
                begun.append(event.item)
        assert begun == [("double", 1), ("double", 2), ("sleep", 100)]
        assert pool.items == [("sleep", 100)]
