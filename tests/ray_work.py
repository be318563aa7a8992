"""What the tests let tasks on a cluster do; the nodes must find it, as they are told by name."""

from __future__ import annotations

import os
import signal
from typing import Any

from batch_work import MANIFEST

from mpsnet_cli._version import __version__
from mpsnet_cli.batch.pool import Tell
from mpsnet_cli.batch.unit import Progress, outcome_of


def make_mortal(models: Any, share: Any) -> Any:  # noqa: ARG001
    return live_or_die


def live_or_die(unit: Any, tell: Tell) -> Any:
    """Note each attempt beside the clip; die if it is called so, perhaps not twice."""
    log = unit.clip.with_suffix(".log")
    with log.open("a") as file:
        file.write("x")
    tell(Progress("reconstruct", 1, 2))
    if unit.clip.stem == "fatal" or (unit.clip.stem == "frail" and log.read_text() == "x"):
        os.kill(os.getpid(), signal.SIGKILL)
    if unit.clip.stem == "odd":
        raise ZeroDivisionError("by me")
    return outcome_of(unit, MANIFEST)


def see_nothing(token: Any) -> tuple[str, bool]:  # noqa: ARG001
    return __version__, False
