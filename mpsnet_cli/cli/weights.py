"""mpsnet weights"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpsnet_cli.errors import WeightsError

if TYPE_CHECKING:
    from rich.console import Console

    from mpsnet_cli.model.config import WeightsInfo

FILE = click.Path(path_type=Path)
OUTPUT = click.option("--output", "-o", type=FILE, required=True, help="File to write.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an existing file.")


@click.group()
def weights() -> None:
    """Get, convert and inspect the network's weights."""


@weights.command("pull")
@click.option("--url", metavar="URL", help="Archive to fetch instead of the official one.")
@OVERWRITE
def pull(url: str | None, overwrite: bool) -> None:
    """Download the official weights and convert them into the user data folder.

    They are for non-commercial research only.
    """
    from mpsnet_cli.weights.official import ARCHIVE_URL, pull_official

    quiet = not sys.stderr.isatty()
    _written(pull_official(url=url or ARCHIVE_URL, overwrite=overwrite, quiet=quiet))


@weights.command("import")
@click.argument("mpsnet_file", type=FILE)
@click.argument("spin_file", type=FILE)
@OUTPUT
@OVERWRITE
def import_(mpsnet_file: Path, spin_file: Path, output: Path, overwrite: bool) -> None:
    """Convert the official checkpoints into one weight file.

    MPSNET_FILE is mpsnet_model_best.pth.tar, SPIN_FILE is spin_model_checkpoint.pth.tar.
    """
    from mpsnet_cli.weights.official import import_official

    _written(import_official(mpsnet_file, spin_file, output, overwrite=overwrite))


@weights.command("init")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@OUTPUT
@OVERWRITE
def init(seed: int, output: Path, overwrite: bool) -> None:
    """Make untrained weights: enough to try the tool, but they know nothing of people."""
    from mpsnet_cli.weights import save_untrained

    _written(save_untrained(output, seed=seed, overwrite=overwrite))


@weights.command("pack")
@click.argument("file")
@click.option("--name", help="What the weights are called from now on. Default: as before.")
@click.option("--licence", help="Their licence. Default: as before.")
@click.option("--note", help="How they came about, in a few words. Default: as before.")
@OUTPUT
@OVERWRITE
def pack(
    file: str, name: str | None, licence: str | None, note: str | None, output: Path,
    overwrite: bool,
) -> None:  # fmt: skip
    """Write a weight file anew for passing on: rounded to float16, half the size.

    FILE is a path, or the name of one that `mpsnet weights list` shows.
    """
    from mpsnet_cli.weights import find_weights, pack_weights

    info = pack_weights(
        find_weights(file), output, name=name, licence=licence, note=note, overwrite=overwrite
    )
    _written(info)
    size = info.path.stat().st_size
    click.echo(f"{size / 1e6:.1f} MB ({size:,} bytes)")


@weights.command("list")
def list_() -> None:
    """List the weights that are found without being named; the first is the default."""
    from rich.table import Table

    from mpsnet_cli.weights import KNOWN, available, read_info

    table = Table("", "weights", show_lines=True)
    table.columns[1].overflow = "fold"
    found = available()
    for number, (place, path) in enumerate(found):
        default = "" if number else "→"
        try:
            lines = [f"{path} ({place})", *_identity(read_info(path))]
        except WeightsError as error:
            lines = [f"{error.message} ({place})"]
        table.add_row(default, "\n".join(lines))
    for known in KNOWN:
        if known.file not in {path.name for _, path in found}:
            table.add_row("", f"not here: {known.name}\nget it: {known.get}")
    _console().print(table, markup=False)


@weights.command("show")
@click.argument("file", required=False)
@click.option("--depth", type=click.IntRange(min=1), default=2, show_default=True,
              help="How far to descend into the network.")  # fmt: skip
def show(file: str | None, depth: int) -> None:
    """Show what a weight file is, and the network in it. Default FILE: the one that is used.

    What the network costs stands beside the paper's Table 2.
    """
    from rich.table import Table

    from mpsnet_cli.model.summary import PAPER_COST, PAPER_NOTE, Cost, summarize
    from mpsnet_cli.weights import find_weights, load_network, read_info

    info = read_info(find_weights(file))
    load_network(info)  # or say what is wrong with its tensors
    rows = summarize(info.config, depth=depth)
    parts = [row for row in rows if "." not in row.name]
    cost = Cost(
        sum(part.parameters for part in parts),
        sum(part.multiply_adds for part in parts),
        info.path.stat().st_size,
    )
    facts = Table.grid("", "", padding=(0, 2))
    for name, value in _facts(info):
        facts.add_row(name, value)
    modules = Table("module", "class", "output", "parameters", "multiply-adds", show_footer=True)
    totals = {0: "all", 3: f"{cost.parameters:,}", 4: f"{cost.multiply_adds:,}"}
    for column, total in totals.items():
        modules.columns[column].footer = total
    modules.columns[3].justify = modules.columns[4].justify = "right"
    for row in rows:
        output = "×".join(map(str, row.output))
        modules.add_row(
            "  " * row.name.count(".") + row.name,
            row.kind,
            output,
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
        )
    costs = Table("for a crop and its window", "this file", "paper, Table 2")
    costs.columns[1].justify = costs.columns[2].justify = "right"
    for what, unit, ours, theirs in (
        ("parameters, M", 1e6, cost.parameters, PAPER_COST.parameters),
        ("multiply-adds (half the FLOPs), G", 1e9, cost.multiply_adds, PAPER_COST.multiply_adds),
        ("file, MB", 1e6, cost.file_bytes, PAPER_COST.file_bytes),
    ):
        costs.add_row(what, f"{ours / unit:.4g}", f"{theirs / unit:.4g}")
    _console().print(facts, "", modules, "", costs, PAPER_NOTE, markup=False)


def _identity(info: WeightsInfo) -> list[str]:
    trained = "yes" if info.trained else "no"
    return [
        info.name,
        f"trained: {trained}; licence: {info.licence}",
        f"sha256 {info.sha256}",
    ]


def _facts(info: WeightsInfo) -> list[tuple[str, str]]:
    config = info.config
    return [
        ("file", str(info.path)),
        ("name", info.name),
        ("trained", "yes" if info.trained else "no"),
        ("licence", info.licence),
        ("sha256", info.sha256),
        ("body", config.body),
        ("temporal", f"attention {config.attention}, integration {config.integration}"),
        (
            "crop",
            f"{config.crop_size} px, {config.crop_scale} × box; camera {config.camera_scale} ×",
        ),
        *(("from", f"{name}, sha256 {digest}") for name, digest in info.sources.items()),
        ("note", info.note),
    ]


def _written(info: WeightsInfo) -> None:
    click.echo("\n".join([str(info.path), *_identity(info)]))


def _console() -> Console:
    """A console that cuts nothing off where no terminal limits the width."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=400, soft_wrap=True)
