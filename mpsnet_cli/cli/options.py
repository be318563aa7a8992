"""Options that more than one command has."""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click

from mpsnet_cli.export import EXPORTERS

Command = TypeVar("Command", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A number within limits; click's own range lets "nan" and "inf" through."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Formats(click.ParamType):
    """Names of export formats with commas between them, as a tuple without doubles."""

    name = "FORMAT,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = dict.fromkeys(word.strip().lower() for word in value.split(",") if word.strip())
        for name in names:
            if name not in EXPORTERS:
                near = get_close_matches(name, EXPORTERS, n=1, cutoff=0.4)
                guess = f", did you mean {near[0]}?" if near else "."
                self.fail(
                    f"There is no format {name}{guess} There are {', '.join(EXPORTERS)}.",
                    param,
                    ctx,
                )
        return tuple(names)


SECONDS = FiniteRange(min=0)

config = click.argument("config", type=click.Path(path_type=Path))
run_folder = click.option(
    "--output",
    "-o",
    "out",
    type=click.Path(path_type=Path),
    help="Folder of the run. Default: out/<the config's name>.",
)
resume = click.option("--resume", is_flag=True, help="Go on where a run that stopped was.")
weights = click.option(
    "--weights",
    "-w",
    metavar="FILE",
    help="Weight file. Default: $MPSNET_WEIGHTS, the user data folder's, or the packaged starter.",
)
body = click.option(
    "--body",
    type=click.Choice(["auto", "free-1", "smpl"]),
    default="auto",
    show_default=True,
    help="Body model. auto: licensed SMPL if it is found, else the free body.",
)
gender = click.option(
    "--gender",
    type=click.Choice(["neutral", "male", "female"]),
    default="neutral",
    show_default=True,
    help="Which of the SMPL files to use. The free body has only neutral.",
)
smpl_path = click.option(
    "--smpl-path",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Where the SMPL files lie (.npz or the original .pkl). Default: $MPSNET_SMPL.",
)
device = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N|mps",
    help="Where the networks run.",
)
precision = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Number format of detector and backbone. auto: the fastest that is safe here.",
)
batch_size = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Crops that go through the backbone at once; halved by itself if memory runs out.",
)
detector = click.option(
    "--detector",
    metavar="FILE|NAME",
    help="YOLO detector: a .pt file, or an official name that is downloaded once. Default: "
    "yolo11n.pt, or the packaged person-starter.pt where that cannot be had.",
)
boxes = click.option(
    "--boxes",
    metavar="FILE|full",
    help="Take people's boxes from a MOT csv or an .npz instead of detecting them; "
    "full: the whole frame is one person.",
)
json_events = click.option(
    "--json", "style", flag_value="json", help="Print one JSON event a line on stdout."
)
quiet = click.option(
    "--quiet", "-q", "style", flag_value="quiet", help="Print only the result folder."
)

_OF_RUN = (
    click.option(
        "--out",
        "-o",
        type=click.Path(path_type=Path),
        default="out",
        show_default=True,
        help="Folder for results; a clip's go to OUT/<its name>/.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace a finished result."),
    click.option(
        "--resume-any", is_flag=True, help="Keep a finished result whatever it was made with."
    ),
    click.option("--start", type=SECONDS, help="Begin here, in seconds."),
    click.option("--end", type=SECONDS, help="Stop here, in seconds."),
    weights,
    body,
    gender,
    smpl_path,
    device,
    precision,
    batch_size,
    detector,
    click.option(
        "--tracker",
        type=click.Choice(["bytetrack", "botsort"]),
        default="bytetrack",
        show_default=True,
    ),
    boxes,
    click.option(
        "--min-frames",
        type=click.IntRange(min=1),
        default=25,
        show_default=True,
        help="Drop people seen on fewer frames.",
    ),
    click.option("--max-people", type=click.IntRange(min=1), help="Keep only the most prominent."),
    click.option(
        "--person",
        "people",
        type=click.IntRange(min=1),
        multiple=True,
        help="Keep only this person's number; may be repeated.",
    ),
    click.option(
        "--focal-length",
        type=FiniteRange(min=0, min_open=True),
        help="Focal length in px. Default: the image diagonal.",
    ),
    click.option(
        "--smooth",
        type=FiniteRange(0, 1),
        default=0.2,
        show_default=True,
        help="Smoothing over time; 0: none.",
    ),
    click.option(
        "--shape",
        type=click.Choice(["person", "frame"]),
        default="person",
        show_default=True,
        help="One body shape for each person, or one for each frame.",
    ),
    click.option(
        "--edges",
        type=click.Choice(["hold", "repeat"]),
        default="hold",
        show_default=True,
        help="How windows are filled at the ends of a track; repeat: as the official demo.",
    ),
    click.option("--overlay/--no-overlay", default=True, help="Write overlay.mp4."),
    click.option(
        "--view",
        type=click.Choice(["overlay", "side", "plain", "all"]),
        default="overlay",
        show_default=True,
        help="What overlay.mp4 shows.",
    ),
    click.option(
        "--renderer",
        type=click.Choice(["auto", "cpu", "pyrender"]),
        default="auto",
        show_default=True,
    ),
    click.option("--meshes/--no-meshes", default=True, help="Write .obj sequences."),
    click.option(
        "--mesh-every",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Write every Nth frame's mesh.",
    ),
    click.option(
        "--export",
        "formats",
        type=Formats(),
        default="",
        help="Write these formats too, to exports/ in the result; see `mpsnet export --help`.",
    ),
    json_events,
    quiet,
)


def of_run(command: Command) -> Command:
    """Give a command all options that say what is to be made of a clip, and how it is shown."""
    for option in reversed(_OF_RUN):
        command = option(command)
    return command
