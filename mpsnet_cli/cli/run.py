"""mpsnet run"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpsnet_cli.cli import options
from mpsnet_cli.cli.batch import existing_of, run_several
from mpsnet_cli.cli.export import failed, tell
from mpsnet_cli.cli.reporting import JsonReporter, make_reporter
from mpsnet_cli.errors import NoPeopleFound, OutputError, PartialResult

if TYPE_CHECKING:
    from mpsnet_cli.model.inference import Precision


@click.command()
@click.argument(
    "videos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="VIDEO..."
)
@options.of_run
def run(videos: tuple[Path, ...], **asked: Any) -> None:
    """Turn a video into SMPL parameters, an overlay video and meshes.

    Several videos, or a folder of them, are worked on as `mpsnet batch` does.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but nobody was found, 4 done for the part
    of a damaged clip that could be read. Of several: see `mpsnet batch --help`.
    """
    if len(videos) > 1 or videos[0].is_dir():
        run_several(videos, **asked)
    else:
        _run_one(videos[0], **asked)


def _run_one(
    video: Path, out: Path, overwrite: bool, resume_any: bool, weights: str | None, body: str,
    gender: str, smpl_path: Path | None, device: str, precision: Precision, batch_size: int | None,
    formats: tuple[str, ...], style: str | None, **arguments: Any,
) -> None:  # fmt: skip
    from mpsnet_cli.body import load_body
    from mpsnet_cli.export.result import read_result
    from mpsnet_cli.export.write import check_packages, export_result
    from mpsnet_cli.job import Arguments, folder_name, run_clip
    from mpsnet_cli.video import probe
    from mpsnet_cli.weights import load_model

    existing = existing_of(overwrite, resume_any)
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
        out / folder_name(video),
        Arguments(**arguments),
        model=model,
        body=loaded,
        existing=existing,
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
