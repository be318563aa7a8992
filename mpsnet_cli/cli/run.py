"""mpsnet run"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpsnet_cli.cli import options
from mpsnet_cli.cli.export import failed, tell
from mpsnet_cli.cli.reporting import JsonReporter, make_reporter
from mpsnet_cli.errors import NoPeopleFound, OutputError, PartialResult

if TYPE_CHECKING:
    from mpsnet_cli.model.inference import Precision

SECONDS = options.FiniteRange(min=0)


@click.command()
@click.argument("video", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default="out",
    show_default=True,
    help="Folder for results; this clip's go to OUT/<clip's name>/.",
)
@click.option("--overwrite", is_flag=True, help="Replace a finished result.")
@click.option("--start", type=SECONDS, help="Begin here, in seconds.")
@click.option("--end", type=SECONDS, help="Stop here, in seconds.")
@options.weights
@options.body
@options.gender
@options.smpl_path
@options.device
@options.precision
@options.batch_size
@options.detector
@click.option(
    "--tracker", type=click.Choice(["bytetrack", "botsort"]), default="bytetrack", show_default=True
)
@options.boxes
@click.option(
    "--min-frames",
    type=click.IntRange(min=1),
    default=25,
    show_default=True,
    help="Drop people seen on fewer frames.",
)
@click.option("--max-people", type=click.IntRange(min=1), help="Keep only the most prominent.")
@click.option(
    "--person",
    "people",
    type=click.IntRange(min=1),
    multiple=True,
    help="Keep only this person's number; may be repeated.",
)
@click.option(
    "--focal-length",
    type=options.FiniteRange(min=0, min_open=True),
    help="Focal length in px. Default: the image diagonal.",
)
@click.option(
    "--smooth",
    type=options.FiniteRange(0, 1),
    default=0.1,
    show_default=True,
    help="Smoothing over time; 0: none.",
)
@click.option(
    "--shape",
    type=click.Choice(["person", "frame"]),
    default="person",
    show_default=True,
    help="One body shape for each person, or one for each frame.",
)
@click.option(
    "--edges",
    type=click.Choice(["hold", "repeat"]),
    default="hold",
    show_default=True,
    help="How windows are filled at the ends of a track; repeat: as the official demo.",
)
@click.option("--overlay/--no-overlay", default=True, help="Write overlay.mp4.")
@click.option(
    "--view",
    type=click.Choice(["overlay", "side", "plain", "all"]),
    default="overlay",
    show_default=True,
    help="What overlay.mp4 shows.",
)
@click.option(
    "--renderer", type=click.Choice(["auto", "cpu", "pyrender"]), default="auto", show_default=True
)
@click.option("--meshes/--no-meshes", default=True, help="Write .obj sequences.")
@click.option(
    "--mesh-every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Write every Nth frame's mesh.",
)
@click.option(
    "--export",
    "formats",
    type=options.Formats(),
    default="",
    help="Write these formats too, to exports/ in the result; see `mpsnet export --help`.",
)
@options.json_events
@options.quiet
def run(
    video: Path, out: Path, overwrite: bool, weights: str | None, body: str, gender: str,
    smpl_path: Path | None, device: str, precision: Precision, batch_size: int | None,
    formats: tuple[str, ...], style: str | None, **arguments: Any,
) -> None:  # fmt: skip
    """Turn VIDEO into SMPL parameters, an overlay video and meshes.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but nobody was found, 4 done for the part
    of a damaged clip that could be read.
    """
    from mpsnet_cli.body import load_body
    from mpsnet_cli.export.result import read_result
    from mpsnet_cli.export.write import check_packages, export_result
    from mpsnet_cli.job import Arguments, run_clip
    from mpsnet_cli.video import probe
    from mpsnet_cli.weights import load_model

    report = make_reporter(style)
    check_packages(formats)
    clip = probe(video)
    model = load_model(
        weights, device=device, precision=precision, batch_size=batch_size, report=report
    )
    loaded = load_body(
        None if body == "auto" else body, path=smpl_path, gender=gender, device=model.device
    )
    if style is None:
        click.echo(f"body: {loaded.name}, from {loaded.source}", err=True)
    folder, manifest = run_clip(
        clip,
        out,
        Arguments(**arguments),
        model=model,
        body=loaded,
        overwrite=overwrite,
        report=report,
    )
    exports = None
    if formats and manifest["people"]:
        exports = export_result(
            read_result(folder),
            loaded,
            formats,
            existing="replace" if overwrite else "keep",
            report=report,
        )
    if exports and style != "quiet":
        tell(exports, report, style)
    if isinstance(report, JsonReporter):
        report.emit("done", folder=str(folder), manifest=manifest)
    elif style == "quiet":
        click.echo(folder)
    else:
        _show(folder, manifest)
    if not manifest["people"]:
        raise NoPeopleFound(f"Nobody was found in {video}. {folder} holds only the manifest.")
    if exports and exports.failures:
        raise OutputError("\n".join(failed(exports)))
    if not manifest["complete"]:
        raise PartialResult(f"Only a part of {video} could be read: see the warnings.")


def _show(folder: Path, manifest: dict[str, Any]) -> None:
    """Print the closing table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(folder), title_justify="left", show_header=False)
    video, people = manifest["video"], manifest["people"]
    frames = f"{manifest['frames']} of {video['frame_count']} frames"
    table.add_row("clip", f"{video['width']}×{video['height']}, {frames}")
    table.add_row("weights", manifest["weights"]["name"])
    table.add_row("body", manifest["body"]["name"])
    for person in people:
        table.add_row(
            f"person {person['id']}",
            f"{person['frames']} frames, {person['first_frame']}–{person['last_frame']}: "
            f"{person['file']}",
        )
    for stage, seconds in manifest["seconds"].items():
        table.add_row(stage, f"{seconds:.1f} s")
    table.add_row("in all", f"{manifest['frames_per_second']} frames/s")
    table.add_row("files", ", ".join(filter(None, (manifest["overlay"], manifest["meshes"]))))
    Console(markup=False).print(table)
