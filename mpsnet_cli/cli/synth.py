"""mpsnet synth"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpsnet_cli.cli import options
from mpsnet_cli.cli.reporting import JsonReporter, make_reporter

if TYPE_CHECKING:
    from mpsnet_cli.synth.repertoire import Split
    from mpsnet_cli.synth.shards import Kind

SIZE, SCENE_SIZE = 224, 416  # px
FRAMES = 64  # of a sequence: enough for the discriminator, which leaves out shorter motions
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--kind",
    type=click.Choice(["crops", "sequences", "scenes"]),
    default="crops",
    show_default=True,
    help="Pictures of one person each, consecutive frames of one person, or pictures of 0 to 8.",
)
@click.option("--count", "-n", type=click.IntRange(min=1), required=True, help="How many samples.")
@click.option(
    "--frames", type=click.IntRange(min=2), help=f"Frames of a sequence. Default: {FRAMES}."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which series of samples.",
)
@click.option(
    "--start",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of the first sample: the same number and seed give the same sample, always.",
)
@click.option(
    "--size",
    type=click.IntRange(min=32, max=1024),
    help=f"Side of a picture in px. Default: {SIZE}; of a scene {SCENE_SIZE}.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "held-out"]),
    default="train",
    show_default=True,
    help="Which motions, people and backgrounds to draw from; the two have none in common.",
)
@click.option("--textures", type=FOLDER, help="Folder of photographs to print on clothes.")
@click.option("--backgrounds", type=FOLDER, help="Folder of photographs to put behind people.")
@options.device
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes. Default: one for each core of a CPU, one for a GPU.",
)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Picture to draw the first samples on, with their joints or boxes.",
)
@options.json_events
@options.quiet
def synth(
    out: Path, kind: Kind, count: int, frames: int | None, seed: int, start: int, size: int | None,
    split: Split, textures: Path | None, backgrounds: Path | None, device: str, workers: int | None,
    sheet: Path | None, style: str | None,
) -> None:  # fmt: skip
    """Make pictures of synthetic people with exact ground truth, in OUT.

    OUT may hold samples of the same recipe, as an interrupted run or a smaller --count leaves
    them: they are kept.
    """
    from functools import partial

    from mpsnet_cli.model.inference import resolve_device
    from mpsnet_cli.synth.crowd import Crowds
    from mpsnet_cli.synth.samples import Samples
    from mpsnet_cli.synth.shards import Recipe, photos_digest, write_shards
    from mpsnet_cli.synth.sheet import write_sheet

    if kind != "sequences" and frames is not None:
        raise click.UsageError("--frames is for --kind sequences.")
    report = make_reporter(style)
    chosen = resolve_device(device)
    on_cpu = chosen.type == "cpu"
    size = size or (SCENE_SIZE if kind == "scenes" else SIZE)
    make = partial(
        Crowds if kind == "scenes" else Samples,
        seed,
        size=size,
        split=split,
        device=str(chosen),
        rasteriser="cv2" if on_cpu else "torch",
        textures=textures,
        backgrounds=backgrounds,
    )
    recipe = Recipe(
        kind=kind,
        seed=seed,
        size=size,
        split=split,
        frames=frames or FRAMES if kind == "sequences" else 1,
        textures=photos_digest(textures),
        backgrounds=photos_digest(backgrounds),
    )
    processes = workers or ((os.cpu_count() or 1) if on_cpu else 1)
    write_shards(make, out, recipe, start=start, count=count, workers=processes, report=report)
    if sheet:
        write_sheet(out, sheet)
    if isinstance(report, JsonReporter):
        report.emit("done", folder=str(out), samples=count)
    else:
        click.echo(out if style == "quiet" else f"{count} {kind} in {out}")
