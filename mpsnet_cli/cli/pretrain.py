"""mpsnet pretrain"""

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
def pretrain(config: Path, out: Path | None, resume: bool, style: str | None) -> None:
    """Train backbone and regressor on single pictures, as CONFIG, a YAML file, says.

    It is what comes before `mpsnet train`, where no trained backbone is at hand. The pictures are
    crops of `mpsnet synth`. The folder gets best.safetensors and last.safetensors, metrics.csv and
    validation.csv, and what --resume needs. examples/starter/pictures.yaml explains every field.
    """
    from mpsnet_cli.training.config import PretrainConfig, load_config
    from mpsnet_cli.training.pretrain import pretrain

    report = make_reporter(style)
    settings = load_config(config, PretrainConfig)
    out = out or Path("out") / config.stem
    for check in pretrain(settings, out, resume=resume, report=report):
        if isinstance(report, JsonReporter):
            report.emit("check", **dataclasses.asdict(check))
        elif style != "quiet":
            click.echo(
                f"{check.crops} crops, {check.crops_per_second:.0f}/s at {check.size} px, "
                f"{check.share_of_limit:.0%} of what matrix products reach: "
                f"loss {check.total:.3f}, PA-MPJPE {check.pa_mpjpe:.1f} mm, "
                f"MPJPE {check.mpjpe:.1f} mm, joints off by {check.joints2d:.1%} of the crop, "
                f"on the maps by {check.maps2d:.1%}" + ", the best so far" * check.best
            )
    click.echo(out) if style == "quiet" else None
