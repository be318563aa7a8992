"""mpsnet attention"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpsnet_cli.cli import options
from mpsnet_cli.cli.reporting import make_reporter
from mpsnet_cli.windows import TARGET

if TYPE_CHECKING:
    from mpsnet_cli.model.inference import Precision

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="CLIP | PICTURE PICTURE")
@click.option("--output", "-o", type=PATH, required=True, help="Picture to write: .png or .jpg.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option(
    "--boxes",
    metavar="FILE|full",
    help="Take the person's box from a file as `mpsnet run` does. Default: found in a clip; all of "
    "a picture. Two pictures are the frames 1 and 2 of such a file.",
)
@click.option(
    "--person", type=click.IntRange(min=1), help="The person's number. Default: most prominent."
)
@click.option(
    "--frame",
    type=click.IntRange(min=0),
    help="Show the window of this frame, counted from 0. Default: the person's middle one.",
)
@options.detector
@options.weights
@options.device
@options.precision
def attention(
    files: tuple[Path, ...], output: Path, overwrite: bool, boxes: str | None, person: int | None,
    frame: int | None, detector: str | None, weights: str | None, device: str, precision: Precision,
) -> None:  # fmt: skip
    """Draw which frames attend to which, or the way from one pose to another.

    For a clip: self-similarity, attention map and MoCA map of a window beside its 16 frames, as in
    the paper's Figure 2. For two pictures, each shown for 16 frames: the bodies around the change
    and how fast their joints move, as in Figure 8.
    """
    if len(files) > 2:
        raise click.UsageError("Give one clip or two pictures.")
    if len(files) == 2 and (frame is not None or (person is not None and boxes is None)):
        raise click.UsageError("Two pictures take no --frame, and --person only with --boxes.")
    from mpsnet_cli import attention as pictures
    from mpsnet_cli.body import load_body
    from mpsnet_cli.render import make_renderer
    from mpsnet_cli.weights import load_model

    report = make_reporter(None)
    pictures.check_output(output, overwrite=overwrite)
    clip = pictures.open_clip(files[0]) if len(files) == 1 else None
    stills = [pictures.read_still(path) for path in files] if clip is None else []
    model = load_model(weights, device=device, precision=precision, report=report)
    names = " → ".join(path.name for path in files) + f", {model.weights.name}"
    trained = model.weights.trained
    if clip is not None:
        track = pictures.choose_track(
            clip, model, boxes=boxes, detector=detector, person=person, report=report
        )
        window = pictures.attend(clip, track, model, frame=frame, report=report)
        title = f"{names}: person {track.id}, frame {window.frames[TARGET]}"
        picture = pictures.draw_attention(window, title=title, trained=trained)
        lines = [f"{name}: {m.min():.3g} to {m.max():.3g}" for name, m in window.maps.items()]
    else:
        body = load_body(device=model.device)
        crops = pictures.crop_stills(stills, model, boxes=boxes, person=person)
        transition = pictures.cross(crops, model, body)
        renderer = make_renderer("cpu", body.faces, report=report)
        picture = pictures.draw_transition(transition, renderer, title=names, trained=trained)
        lines = [pictures.describe(transition)]
    pictures.write_picture(output, picture)
    click.echo("\n".join([*lines, str(output)]))
