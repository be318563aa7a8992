"""mpsnet eval"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpsnet_cli.cli import options
from mpsnet_cli.cli.reporting import JsonReporter, make_reporter

if TYPE_CHECKING:
    from mpsnet_cli.evaluation.evaluate import Smooth
    from mpsnet_cli.evaluation.paper import PaperRow
    from mpsnet_cli.evaluation.result import Result
    from mpsnet_cli.model.inference import Precision
    from mpsnet_cli.progress import Reporter

FILE = click.Path(path_type=Path)


class Smoothing(options.FiniteRange):
    """A strength of the tool's own smoothing, or the word "release"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "release" else super().convert(value, param, ctx)


@click.command()
@click.argument("data", type=FILE)
@click.option(
    "--truth", type=FILE, help="DATA is a clip, and this .npz the true motion of its people."
)
@click.option(
    "--boxes", metavar="FILE|full", help="A clip's people, as `mpsnet run --boxes` takes them."
)
@options.weights
@options.body
@options.smpl_path
@click.option(
    "--joint-regressor",
    type=FILE,
    help="J_regressor_h36m.npy: the benchmarks' joints from SMPL's vertices.",
)
@click.option(
    "--release-batching",
    is_flag=True,
    help="Let windows mix in groups of 8, as in the official evaluation and its numbers.",
)
@click.option(
    "--smooth",
    type=Smoothing(0, 1),
    default=0,
    show_default=True,
    metavar="0..1|release",
    help="Smooth before measuring: as `mpsnet run` does, or as the official --filter.",
)
@click.option(
    "--fps",
    type=options.FiniteRange(min=0, min_open=True),
    help="Frames per second of a database, for mm/s² and --smooth.",
)
@options.device
@options.precision
@options.batch_size
@options.json_events
def eval(
    data: Path, truth: Path | None, boxes: str | None, weights: str | None, body: str,
    smpl_path: Path | None, joint_regressor: Path | None, release_batching: bool, smooth: Smooth,
    fps: float | None, device: str, precision: Precision, batch_size: int | None, style: str | None,
) -> None:  # fmt: skip
    """Measure how far predicted bodies are from the truth, as the paper does.

    DATA is a preprocessed database (.pt of the VIBE and TCMR lineage), an .npz of sequences, or,
    with --truth, a clip, which goes through the whole pipeline.
    """
    if truth is None and boxes is not None:
        raise click.UsageError("--boxes is for a clip, which needs --truth.")
    if truth and (joint_regressor or release_batching or fps or smooth == "release"):
        raise click.UsageError(
            "--joint-regressor, --release-batching, --fps and --smooth release are for databases, "
            "not for a clip with --truth."
        )
    from mpsnet_cli.body import load_body
    from mpsnet_cli.evaluation.paper import paper_row
    from mpsnet_cli.weights import load_model

    report = make_reporter(style)
    if truth:
        measure = _on_pixels(data, truth, boxes)
    else:
        measure = _on_features(data, fps, joint_regressor, release_batching, report)
    model = load_model(
        weights, device=device, precision=precision, batch_size=batch_size, report=report
    )
    loaded = load_body(None if body == "auto" else body, path=smpl_path, device=model.device)
    result = measure(model, loaded, smooth=smooth, report=report)
    facts = {
        "weights": model.weights.name,
        "trained": model.weights.trained,
        "body": loaded.name,
        "smooth": smooth,
        "release_batching": release_batching,
    }
    paper = None if truth else paper_row(data)
    if isinstance(report, JsonReporter):
        report.emit("done", **facts, **result.as_dict(), paper=paper._asdict() if paper else None)
    else:
        _show(result, facts, paper)


def _on_features(
    data: Path, fps: float | None, regressor: Path | None, release_batching: bool, report: Reporter
) -> partial[Result]:
    """Read the data, so that only model and body are missing."""
    from mpsnet_cli.body.joint_sets import load_joint_regressor
    from mpsnet_cli.datasets import read_sequences
    from mpsnet_cli.evaluation.evaluate import evaluate

    return partial(
        evaluate,
        read_sequences(data, report, fps=fps),
        joint_regressor=load_joint_regressor(regressor) if regressor else None,
        release_batching=release_batching,
    )


def _on_pixels(clip: Path, truth: Path, boxes: str | None) -> partial[Result]:
    """Look at the clip and what is known of it, so that only model and body are missing."""
    from mpsnet_cli.evaluation.pixels import evaluate_clip, load_truth
    from mpsnet_cli.tracking import given_tracks
    from mpsnet_cli.video import probe

    video = probe(clip)
    tracks = given_tracks(boxes, video) if boxes else None
    return partial(evaluate_clip, video, load_truth(truth), tracks=tracks)


def _show(result: Result, facts: dict[str, Any], paper: PaperRow | None) -> None:
    """Print what was measured on what, then a row for each sequence, for all, and the paper's."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from mpsnet_cli.evaluation.result import METRICS

    trained = "" if facts["trained"] else " (untrained: the numbers mean nothing)"
    click.echo(f"weights: {facts['weights']}{trained}")
    click.echo(f"body: {facts['body']}")
    click.echo(f"joints: {result.joints}")
    click.echo(f"smoothing: {facts['smooth'] or 'none'}")
    if facts["release_batching"]:
        click.echo("batches: of 8 windows that mix, as in the official release")
    if people := result.people:
        click.echo(
            f"person-frames: {people.true} true, {people.missed} missed; "
            f"{people.spurious} found that are nobody's"
        )
    total = result.pooled
    shown = [metric for metric in METRICS if metric in total.means()]
    table = Table(box=SIMPLE, padding=0)
    table.add_column("sequence", overflow="fold")
    for heading in ("frames", *("\n".join(METRICS[metric]) for metric in shown)):
        table.add_column(heading, justify="right", no_wrap=True)
    for errors in (*result.sequences, total):
        means = errors.means()
        table.add_row(
            errors.name,
            str(errors.frames),
            *(f"{means[metric]:.1f}" if metric in means else "–" for metric in shown),
            end_section=errors is result.sequences[-1],
        )
    if paper:
        printed = [getattr(paper, metric, None) for metric in shown]
        table.add_row(
            f"MPS-Net's paper, {paper.data}", "", *("–" if n is None else str(n) for n in printed)
        )
    Console(markup=False).print(table)
    click.echo(
        "ACC-ERR: the paper prints mm/s², its release computes mm/frame². Here are both"
        + ("; the paper's number stands in the column of what was computed." if paper else ".")
    )
    if result.people:
        click.echo("camera, image: joints compared where they stand, with nothing aligned.")
