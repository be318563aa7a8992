"""The report of a batch: one file for programs and one page for whoever opens it in the morning.

The page needs nothing but itself: its pictures are in it, it runs no script, and its content
security policy lets it load nothing, whatever the names in it may say.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from mpsnet_cli._version import __version__
from mpsnet_cli.batch.outcome import Outcome, Status
from mpsnet_cli.batch.storage import shown
from mpsnet_cli.batch.strip import keep_strip
from mpsnet_cli.errors import OutputError
from mpsnet_cli.weights import PARTLY_TRAINED

BATCH_FORMAT = "mpsnet-batch/1"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
MAX_PICTURES = 24_000_000  # characters of pictures in the page: about a thousand clips

STATUSES: dict[Status, str] = {  # in the order of the page
    "failed": "failed",
    "stopped": "stopped",
    "partial": "partly read",
    "done": "done",
    "kept": "done before",
    "nobody": "nobody found",
}
WRONG: tuple[Status, ...] = ("failed", "stopped", "partial")

# Characters that show nothing, or turn round what follows them; lone surrogates are met on encoding
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Picture(NamedTuple):
    """A strip, as the page holds it."""

    jpeg: Markup  # base64
    width: int  # px
    height: int


class Report:
    """What has become of a batch so far, as out/report.json and out/report.html.

    arguments: what the user asked for, for the reader's memory
    started: when the batch began, as of `time.time`
    """

    def __init__(self, out: Path, *, arguments: dict[str, Any], started: float) -> None:
        self._out = out
        self._arguments = arguments
        self._started = started
        self._outcomes: dict[str, Outcome] = {}
        self._pictures: dict[str, Picture] = {}
        self._left_out: set[str] = set()  # clips whose pictures no longer fit

    def add(self, outcome: Outcome) -> None:
        """Take in a clip; a later outcome takes the place of an earlier one of the same name."""
        name = outcome.name
        self._outcomes[name] = outcome
        self._pictures.pop(name, None)
        self._left_out.discard(name)
        if (strip := keep_strip(outcome)) is None:
            return
        if sum(len(picture.jpeg) for picture in self._pictures.values()) < MAX_PICTURES:
            jpeg = Markup(base64.b64encode(strip.jpeg).decode())
            self._pictures[name] = Picture(jpeg, strip.width, strip.height)
        else:
            self._left_out.add(name)

    def write(self, *, unfinished: int) -> None:
        """Write both files, each whole or not at all; `unfinished` clips have not been taken in.

        Raises OutputError if that is impossible: then the files of before are still there.
        """
        outcomes = sorted(self._outcomes.values(), key=_place)
        now = time.time()
        facts = {
            "started": _moment(self._started),
            "written": _moment(now),
            "arguments": self._arguments,
            "unfinished": unfinished,
            "totals": _totals(outcomes, wall_seconds=max(now - self._started, 1e-3)),
        }
        record = {
            "format": BATCH_FORMAT,
            "tool": {"name": "mpsnet-cli", "version": __version__},
            **facts,
            "clips": [self._record(outcome) for outcome in outcomes],
        }
        page = _template().render(
            **facts,
            **_overview(outcomes),
            options=_options(self._arguments),
            out=Path(self._arguments.get("out", self._out)).resolve().name,
            outcomes=outcomes,
            pictures=self._pictures,
            left_out=len(self._left_out),
            href=self._href,
        )
        _write(self._out / REPORT_JSON, json.dumps(record, indent=1, default=str))
        _write(self._out / REPORT_HTML, page)

    def _record(self, outcome: Outcome) -> dict[str, Any]:
        folder = outcome.folder and self._relative(outcome.folder)
        return {**vars(outcome), "clip": shown(outcome.clip), "folder": folder}

    def _relative(self, folder: Path) -> str:
        return Path(os.path.relpath(folder, self._out)).as_posix()

    def _href(self, outcome: Outcome, file: str = "") -> str:
        """Link to a file of a result, or to its folder."""
        assert outcome.folder is not None
        return quote(os.fsencode(f"{self._relative(outcome.folder)}/{file}"))


def _place(outcome: Outcome) -> tuple[int, list[int | str]]:
    """Sort what went wrong before the rest, and clip 9 before clip 10."""
    rank = WRONG.index(outcome.status) if outcome.status in WRONG else len(WRONG)
    parts = re.split(r"([0-9]+)", outcome.name.casefold())
    return rank, [int(part) if odd % 2 else part for odd, part in enumerate(parts)]


def _totals(outcomes: Sequence[Outcome], *, wall_seconds: float) -> dict[str, Any]:
    manifests = _manifests(outcomes)
    new = _manifests(outcome for outcome in outcomes if outcome.status != "kept")
    statuses = Counter(outcome.status for outcome in outcomes)
    return {
        "clips": len(outcomes),
        **{status: statuses[status] for status in STATUSES},
        "people": sum(len(manifest["people"]) for manifest in manifests),
        "frames": sum(manifest["frames"] for manifest in manifests),
        "video_seconds": round(sum(map(_clip_seconds, manifests)), 3),
        "wall_seconds": round(wall_seconds, 3),
        "work_seconds": round(sum(outcome.seconds for outcome in outcomes), 3),
        "frames_per_second": round(sum(each["frames"] for each in new) / wall_seconds, 2),
    }


def _manifests(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    return [outcome.manifest for outcome in outcomes if outcome.manifest is not None]


def _clip_seconds(manifest: dict[str, Any]) -> float:
    """Return how much of a clip was worked on."""
    return manifest["frames"] / manifest["video"]["fps"]


def _overview(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Gather what the page says of all clips together."""
    manifests = _manifests(outcomes)
    warnings = Counter(text for manifest in manifests for text in manifest["warnings"])
    common = [text for text, count in warnings.items() if count == len(manifests) > 1]
    stages: Counter[str] = Counter()
    made: dict[str, Counter[str]] = {}
    for manifest in manifests:
        stages.update(manifest["seconds"])
        for what, which in _making(manifest).items():
            made.setdefault(what, Counter())[which] += 1
    return {
        "results": len(manifests),
        "common": common,
        "filters": _filters(outcomes, common),
        "stages": stages.most_common(),
        "makings": {what: which.most_common() for what, which in made.items()},
        "trainings": Counter(_training(each["weights"]) for each in manifests).most_common(),
    }


def _own_warnings(manifest: dict[str, Any], common: Sequence[str]) -> list[str]:
    """Return the warnings of a clip that not every clip has."""
    return [text for text in manifest["warnings"] if text not in common]


def _making(manifest: dict[str, Any]) -> dict[str, str]:
    """Say what a result was made with."""
    weights, detector, device = manifest["weights"], manifest["detector"], manifest["device"]
    return {
        "Weights": f"{weights['name']}, sha256 {weights['sha256'][:12]}…",
        "Body": manifest["body"]["name"],
        "People": detector.get("name") or f"boxes: {detector['boxes']}",
        "Device": f"{device['name']}, {device['precision']}",
        "Version": f"mpsnet-cli {manifest['tool']['version']}",
    }


def _filters(outcomes: Iterable[Outcome], common: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return what the clips can be narrowed down to: key, word, and how many they are."""
    right = [outcome for outcome in outcomes if outcome.status not in WRONG]
    statuses = Counter(outcome.status for outcome in right)
    warned = sum(bool(_own_warnings(each, common)) for each in _manifests(right))
    filters = [(str(key), word, statuses[key]) for key, word in STATUSES.items()]
    return [each for each in [*filters, ("warned", "with warnings", warned)] if each[2]]


def _options(arguments: dict[str, Any]) -> dict[str, str]:
    """Write out the arguments that were given or have a default, a line for each value."""
    return {
        name: "\n".join(map(str, value if isinstance(value, list | tuple) else [value]))
        for name, value in arguments.items()
        if value not in (None, (), [])
    }


def _training(weights: dict[str, Any]) -> str:
    if not weights["trained"]:
        return "untrained"
    return PARTLY_TRAINED if PARTLY_TRAINED in weights["name"] else "trained"


@cache
def _template() -> Template:
    """Load the page. What it shows is escaped by default, and made visible."""
    environment = Environment(
        autoescape=True,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(statuses=STATUSES, wrong=WRONG, version=__version__)
    environment.filters.update(
        clip_seconds=_clip_seconds,
        count=_count,
        duration=_duration,
        moment=_written_out,
        own_warnings=_own_warnings,
        shown=shown,
    )
    source = resources.files("mpsnet_cli.batch").joinpath("report.html").read_text("utf-8")
    return environment.from_string(source)


def _visible(value: Any) -> str:
    """Show what would not be seen as an escape sequence; markup is our own."""
    if isinstance(value, Markup):
        return value
    return INVISIBLE.sub(lambda found: ascii(found.group())[1:-1], str(value))


def _count(number: int, one: str, many: str | None = None) -> str:
    """Say how many: "1 clip", "1,200 clips"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _duration(seconds: float) -> str:
    """Say how long, to about two digits of the larger unit: "0.4 s", "3 min 5 s", "7 h 12 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def _moment(seconds: float) -> str:
    """Write a time of `time.time` in ISO 8601, local and with its offset."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _written_out(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%a %d %b %Y, %H:%M:%S}"


def _write(path: Path, text: str) -> None:
    """Write a file under a temporary name and put it in place."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(text.encode("utf-8", "backslashreplace"))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"The report {path} cannot be written: {reason}. Make room there or pass another --out."
        ) from error
