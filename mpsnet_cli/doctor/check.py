"""What the doctor looks at, and what it finds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mpsnet_cli.errors import MpsnetError

State = Literal["ok", "note", "skipped", "failed"]


@dataclass(frozen=True)
class Finding:
    """One fact or the outcome of one trial, on one line.

    state: ok; note, something is missing or doubtful that `mpsnet run` does without; skipped; or
        failed, something that it needs is missing or broken
    advice: what the user may do about it
    seconds: that it took to find out
    """

    name: str
    text: str
    state: State = "ok"
    advice: str | None = None
    group: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Check:
    """A function that looks at one thing, and where its findings are listed.

    find: is given a folder for temporary files, and yields findings; their group and seconds are
        filled in by `perform`
    needed: whether `mpsnet run` cannot do without what this looks at, should `find` raise or crash
    writes: whether it cannot be done without the folder, which a full disk denies
    """

    group: str
    name: str
    find: Callable[[Path], Iterator[Finding]]
    needed: bool = True
    writes: bool = False

    def finding(self, text: str, state: State = "ok", seconds: float = 0.0) -> Finding:
        """Return a finding about the check itself."""
        return Finding(self.name, text, state, group=self.group, seconds=seconds)

    def failure(self, why: str, seconds: float = 0.0) -> Finding:
        """Return the finding that this check came to no end."""
        return self.finding(f"failed: {why}", "failed" if self.needed else "note", seconds)


def perform(check: Check, folder: Path | None) -> Iterator[Finding]:
    """Yield what a check finds; whatever it raises is a finding too.

    The user's home is shown as ~, since its path tends to hold a name.
    """
    if folder is None and check.writes:
        yield check.finding("skipped: there is no folder for temporary files", "skipped")
        return
    began = time.perf_counter()
    try:
        for finding in check.find(folder or Path()):
            now = time.perf_counter()
            yield replace(
                finding,
                group=check.group,
                seconds=round(now - began, 3),
                text=_one_line(finding.text),
                advice=finding.advice and _one_line(finding.advice),
            )
            began = now
    except Exception as error:  # of whatever is broken here: the other checks go on
        why = (
            error.message if isinstance(error, MpsnetError) else f"{type(error).__name__}: {error}"
        )
        yield check.failure(_one_line(why), round(time.perf_counter() - began, 3))


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"(?<![\w/.-]){re.escape(home)}(?![\w.-])", "~", text)
    return "".join(letter if letter.isprintable() else "?" for letter in text)
