"""mpsnet features"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpsnet_cli.cli import options
from mpsnet_cli.cli.reporting import JsonReporter, make_reporter
from mpsnet_cli.errors import InputError, NoPeopleFound, PartialResult

if TYPE_CHECKING:
    from mpsnet_cli.model.inference import Precision


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="The .npz to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@options.weights
@options.device
@options.precision
@options.batch_size
@options.detector
@options.boxes
@options.json_events
@options.quiet
def features(
    source: Path, output: Path, overwrite: bool, weights: str | None, device: str,
    precision: Precision, batch_size: int | None, detector: str | None, boxes: str | None,
    style: str | None,
) -> None:  # fmt: skip
    """Store the backbone's features of people, for training and evaluation without pictures.

    SOURCE is a clip, a folder of clips, a result of `mpsnet run` (labelled with its motions), or a
    folder of `mpsnet synth --kind sequences` (labelled exactly).

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nobody was found, 4 done for what could be read.
    """
    from mpsnet_cli.datasets import save_sequences
    from mpsnet_cli.features import extract_features
    from mpsnet_cli.weights import load_model, refuse_existing

    refuse_existing(output, overwrite=overwrite)
    report = make_reporter(style)
    model = load_model(
        weights, device=device, precision=precision, batch_size=batch_size, report=report
    )
    found = list(extract_features(source, model, boxes=boxes, detector=detector, report=report))
    if not found and report.losses:
        raise InputError(f"Nothing of {source} could be used: see the warnings.")
    if not found:
        raise NoPeopleFound(f"Nobody was found in {source}: {output} is not written.")
    save_sequences(output, found)
    frames = sum(map(len, found))
    if isinstance(report, JsonReporter):
        report.emit("done", file=str(output), sequences=len(found), frames=frames)
    elif style == "quiet":
        click.echo(output)
    else:
        click.echo(f"{output}: {len(found)} sequences, {frames} frames")
    if report.losses:
        raise PartialResult(f"Only a part of {source} could be read: see the warnings.")
