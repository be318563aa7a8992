"""mpsnet batch"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpsnet_cli.cli import options
from mpsnet_cli.errors import InputError, OutputError, SomeClipsFailed

if TYPE_CHECKING:
    from mpsnet_cli.batch.batch import Conclusion, Engine
    from mpsnet_cli.job import Existing
    from mpsnet_cli.model.inference import Precision

INTERRUPTED = 130  # exit code, as shells give it to what Ctrl-C ended


class Workers(click.ParamType):
    """A number of processes, or None for "auto"."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        return None if value == "auto" else click.IntRange(min=1).convert(value, param, ctx)


@click.command()
@click.argument(
    "inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CLIPS..."
)
@click.option("--recursive", "-r", is_flag=True, help="Look below the folders too.")
@click.option("--dry-run", is_flag=True, help="Only show what there is to do.")
@click.option(
    "--workers",
    type=Workers(),
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Processes; each works on one clip at a time. auto: two for each GPU, or one for each "
    "core of a CPU, as far as memory goes.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Who works: processes of this machine, or a Ray cluster (pip install 'mpsnet-cli[ray]').",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Of the Ray cluster. Default: $RAY_ADDRESS, one that runs here, or one made for this.",
)
@click.option("--watch", is_flag=True, help="Wait for more clips to land, until Ctrl-C.")
@options.of_run
def batch(inputs: tuple[Path, ...], **asked: Any) -> None:
    """Turn many videos into SMPL parameters, overlays and meshes, and keep a report.

    CLIPS are videos, folders of them, globs in quotes ("**" goes below folders), and .txt files
    that list any of these, one a line, relative to the list. Results mirror the folders under OUT,
    and OUT/report.html tells of all. A clip that fails, or ends its process, harms no other.
    Finished clips are kept: the same command goes on where it was stopped. CLIPS and OUT may be
    URLs that fsspec knows, such as s3://bucket/clips.

    Exit codes: 0 all clips succeeded, 1 the batch itself failed, 2 wrong usage, 5 some clips
    failed, 130 stopped by Ctrl-C.
    """
    run_several(inputs, **asked)


def run_several(
    inputs: tuple[Path, ...], out: Path, overwrite: bool, resume_any: bool, weights: str | None,
    body: str, gender: str, smpl_path: Path | None, device: str, precision: Precision,
    batch_size: int | None, formats: tuple[str, ...], style: str | None, recursive: bool = False,
    dry_run: bool = False, workers: int | None = None, watch: bool = False,
    engine: Engine = "local", address: str | None = None, **arguments: Any,
) -> None:  # fmt: skip
    """Work on several clips, for `mpsnet batch` and `mpsnet run`."""
    existing = existing_of(overwrite, resume_any)
    if arguments["boxes"] not in (None, "full"):
        raise click.UsageError("--boxes FILE is of one clip: for several there is --boxes full.")
    if address and engine == "local":
        raise click.UsageError("--address is of a Ray cluster: it goes with --engine ray.")
    try:
        from mpsnet_cli.batch.batch import Request, plan_batch, run_batch
        from mpsnet_cli.batch.unit import Models
        from mpsnet_cli.cli.batch_listeners import listening
        from mpsnet_cli.export.write import check_packages
        from mpsnet_cli.job import Arguments

        check_packages(formats)
        request = Request(
            inputs,
            out,
            Arguments(**arguments),
            Models(
                weights, None if body == "auto" else body, gender, smpl_path, precision, batch_size
            ),
            device=device,
            existing=existing,
            formats=formats,
            recursive=recursive,
            workers=workers,
            watch=watch,
            engine=engine,
            address=address,
        )
        if watch and style is None:
            click.echo("Waiting for clips to land; Ctrl-C ends it.", err=True)
        with listening(style, out, dry_run=dry_run) as listener:
            if dry_run:
                plan_batch(request, listener)
                return
            conclusion = run_batch(request, listener)
        listener.on_end(conclusion)
    except KeyboardInterrupt:  # before there was anything to keep
        click.echo("Stopped.", err=True)
        click.get_current_context().exit(INTERRUPTED)
    _raise_what_failed(conclusion, out)


def existing_of(overwrite: bool, resume_any: bool) -> Existing:
    """Say what becomes of results that are there already."""
    if overwrite and resume_any:
        raise click.UsageError("--overwrite and --resume-any exclude each other.")
    return "replace" if overwrite else "any" if resume_any else "same"


def _raise_what_failed(conclusion: Conclusion, out: Path) -> None:
    from mpsnet_cli.batch.storage import shown

    failed = sum(not outcome.succeeded for outcome in conclusion.outcomes)
    count = len(conclusion.outcomes) + conclusion.unfinished
    if conclusion.interrupted:
        click.echo(
            f"Stopped with {count - failed - conclusion.unfinished} of {count} clips done: "
            "the same command goes on from there.",
            err=True,
        )
        click.get_current_context().exit(INTERRUPTED)
    if conclusion.no_room:
        raise OutputError(
            f"No more clips were begun, as there is no room for them: {conclusion.no_room} "
            "Then the same command goes on."
        )
    if not count:
        raise InputError(
            "There are no clips in what was given: check the names, or look into the folders below "
            "with -r."
        )
    if failed:
        raise SomeClipsFailed(
            f"{failed} of {count} clips failed: see {shown(out / 'report.html')}."
        )
