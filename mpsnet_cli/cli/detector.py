"""mpsnet detector"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from mpsnet_cli.cli import options
from mpsnet_cli.cli.reporting import JsonReporter, make_reporter


@click.command()
@options.config
@options.run_folder
@options.resume
@options.json_events
@options.quiet
def detector(config: Path, out: Path | None, resume: bool, style: str | None) -> None:
    """Train a person detector on synthetic scenes, as CONFIG, a YAML file, says.

    The folder gets best.pt and last.pt, for `mpsnet run --detector`, metrics.csv and
    validation.csv, and what --resume needs. examples/starter/detector.yaml explains every field.
    """
    from mpsnet_cli.training.config import load_config
    from mpsnet_cli.training.detector import DetectorConfig, train_detector

    report = make_reporter(style)
    settings = load_config(config, DetectorConfig)
    out = out or Path("out") / config.stem
    for check in train_detector(settings, out, resume=resume, report=report):
        if isinstance(report, JsonReporter):
            report.emit("check", **dataclasses.asdict(check))
        elif style != "quiet":
            click.echo(
                f"{check.pictures} pictures, {check.pictures_per_second:.0f}/s: "
                f"loss {check.total:.3f}, AP50 {check.ap50:.3f}, "
                f"{100 * check.recall:.0f} % of the people found, "
                f"{check.false:.2f} false alarms a picture" + ", the best so far" * check.best
            )
    click.echo(out) if style == "quiet" else None
