"""mpsnet train"""

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
def train(config: Path, out: Path | None, resume: bool, style: str | None) -> None:
    """Train the temporal network on features, as CONFIG, a YAML file, says.

    The folder gets best.safetensors and last.safetensors, metrics.csv and validation.csv,
    TensorBoard events, and what --resume needs. examples/train.yaml explains every field.
    """
    from mpsnet_cli.training.config import TrainConfig, load_config
    from mpsnet_cli.training.loop import train

    report = make_reporter(style)
    settings = load_config(config, TrainConfig)
    out = out or Path("out") / config.stem
    for epoch in train(settings, out, resume=resume, report=report):
        if isinstance(report, JsonReporter):
            report.emit("epoch", **dataclasses.asdict(epoch))
        elif style != "quiet":
            click.echo(
                f"epoch {epoch.number}: loss {epoch.total:.3f}, PA-MPJPE {epoch.pa_mpjpe:.1f} mm, "
                f"MPJPE {epoch.mpjpe:.1f} mm, acceleration {epoch.acceleration:.1f} mm/frame²"
                + ", the best so far"
                * epoch.best
            )
    click.echo(out) if style == "quiet" else None
