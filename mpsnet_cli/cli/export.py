"""mpsnet export"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpsnet_cli.cli import options
from mpsnet_cli.cli.reporting import JsonReporter, make_reporter
from mpsnet_cli.errors import MpsnetError, OutputError
from mpsnet_cli.export import EXPORTERS

if TYPE_CHECKING:
    from mpsnet_cli.export.write import Exports
    from mpsnet_cli.progress import Reporter

SECONDS = options.FiniteRange(min=0)
FORMATS = "\n".join(f"{name:<6} {kind.what}" for name, kind in EXPORTERS.items())


class Ids(click.ParamType):
    """People's numbers with commas between them."""

    name = "N,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        words = [word.strip() for word in value.split(",") if word.strip()]
        if not all(word.isdecimal() for word in words):
            self.fail(f"{value} are not people's numbers, such as 1,3.", param, ctx)
        return tuple(map(int, words))


def write_blender_addon(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Write the add-on, and nothing else."""
    if path is None or ctx.resilient_parsing:
        return
    from mpsnet_cli.export.blender import write_addon

    try:
        write_addon(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
    click.echo(path)
    ctx.exit()


@click.command(epilog=f"\b\nFormats:\n{FORMATS}")
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER|NPZ...",
)
@click.option(
    "--format",
    "-f",
    "formats",
    type=options.Formats(),
    default="glb",
    show_default=True,
    help="What to write, see below.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the files. Default: exports/ beside the input.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of these names.")
@click.option("--people", type=Ids(), default="", help="Only people of these numbers.")
@click.option("--start", type=SECONDS, help="Begin here, in seconds of the clip.")
@click.option("--end", type=SECONDS, help="Stop here, in seconds of the clip.")
@click.option(
    "--fps",
    type=options.FiniteRange(min=0, min_open=True, max=1000),
    help="Resample to this frame rate. Default: the clip's own times.",
)
@click.option(
    "--world",
    type=click.Choice(["camera", "upright"]),
    default="camera",
    show_default=True,
    help="Where y up is. camera: the picture's upright; upright: that of the people who stand, and "
    "the floor is at 0 under the lowest feet.",
)
@click.option(
    "--root",
    type=click.Choice(["keep", "lock", "ground"]),
    default="keep",
    show_default=True,
    help="Paths. keep: as estimated; lock: in place, each pelvis above where it starts; ground: "
    "feet that touch the floor neither slide nor sink; needs --world upright.",
)
@options.smpl_path
@click.option(
    "--blender-addon",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=write_blender_addon,
    help="Write the add-on that opens results in Blender, a .zip, and nothing else.",
)
@options.json_events
@click.option("--quiet", "-q", "style", flag_value="quiet", help="Print only the files' names.")
def export(
    sources: tuple[Path, ...], formats: tuple[str, ...], out: Path | None, overwrite: bool,
    people: tuple[int, ...], start: float | None, end: float | None, fps: float | None,
    world: Any, root: Any, smpl_path: Path | None, style: str | None,
) -> None:  # fmt: skip
    """Write what `mpsnet run` found in the formats of other programs.

    Give its result folders, or single people's .npz. Time 0 is the clip's first frame, or that of
    --start. A format that fails is told of and leaves no file; the others are written.
    """
    if not formats:
        raise click.UsageError("--format names nothing.")
    if root == "ground" and world != "upright":
        raise click.UsageError("--root ground needs a floor: pass --world upright too.")
    from mpsnet_cli.body import load_body
    from mpsnet_cli.export.result import read_result, select
    from mpsnet_cli.export.write import export_result

    report = make_reporter(style)
    failures: list[str] = []
    names: set[str] = set()
    for source in sources:
        try:
            result = select(read_result(source), people=people, start=start, end=end, report=report)
            if out and result.name in names:
                raise OutputError(
                    f"{source} is called {result.name}, as one before it is: exports of both would "
                    f"be the same files in {out}. Export it on its own, or leave --out away."
                )
            names.add(result.name)
            body = load_body(result.motions[0].body, path=smpl_path)
            if not result.motions[0].trained:
                report.warn(
                    f"{result.name} was made with untrained weights: the motion means nothing."
                )
            exports = export_result(
                result,
                body,
                formats,
                out=out,
                fps=fps,
                world=world,
                root=root,
                existing="replace" if overwrite else "refuse",
                report=report,
            )
        except MpsnetError as error:
            if len(sources) == 1:
                raise
            failures.append(error.message)
            continue
        failures += failed(exports)
        tell(exports, report, style)
    if failures:
        raise OutputError("\n".join(failures))


def failed(exports: Exports) -> list[str]:
    """Give a sentence for each format that could not be written."""
    return [f"{name}: {error.message}" for name, error in exports.failures.items()]


def tell(exports: Exports, report: Reporter, style: str | None) -> None:
    """Print what was written."""
    if isinstance(report, JsonReporter):
        for name, paths in exports.files.items():
            report.emit("exported", format=name, files=list(map(str, paths)), **_facts(exports))
        for name, error in exports.failures.items():
            report.emit("failed", format=name, text=error.message)
    elif style == "quiet":
        for paths in exports.files.values():
            click.echo("\n".join(map(str, paths)))
    elif exports.files:
        _show(exports)


def _facts(exports: Exports) -> dict[str, Any]:
    stage, tilt = exports.stage, exports.tilt
    return {
        "people": [person.id for person in stage.people],
        "body": stage.body.name,
        "weights": stage.weights,
        "trained": stage.trained,
        "camera": tilt._asdict() if tilt else None,
    }


def _show(exports: Exports) -> None:
    from rich.console import Console
    from rich.table import Table

    stage, tilt = exports.stage, exports.tilt
    table = Table(title=stage.name, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    trained = "" if stage.trained else " (untrained)"
    table.add_row("weights", stage.weights + trained)
    table.add_row("body", stage.body.name)
    for person in stage.people:
        seconds = f"{person.times[0]:.2f} to {person.times[-1]:.2f} s"
        table.add_row(f"person {person.id}", f"{len(person)} frames, {seconds}")
    if tilt:
        table.add_row(
            "camera",
            f"{tilt.height:.2f} m above the floor, {tilt.pitch:.1f}° down, {tilt.roll:.1f}° rolled",
        )
    for name, paths in exports.files.items():
        table.add_row(name, "\n".join(map(_described, paths)))
    Console(markup=False).print(table)


def _described(path: Path) -> str:
    if path.is_dir():
        return f"{path}, {sum(1 for _ in path.iterdir())} files"
    return f"{path}, {path.stat().st_size / 1e6:.2f} MB"
