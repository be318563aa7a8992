"""mpsnet doctor"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mpsnet_cli.doctor import Finding

NAME = 15  # columns for what a line is about
MARKS = {"ok": " ", "note": "-", "skipped": "-", "failed": "!"}
COLOURS = {"note": "yellow", "skipped": "yellow", "failed": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Tell whether `mpsnet run` can work here: what there is, and each stage tried.

    It takes some seconds, downloads nothing and leaves no files. Put its output into a bug report.

    Exit codes: 0 all that a run needs is here, 1 something that it needs is missing or broken.
    """
    from mpsnet_cli.doctor import examine

    findings: list[Finding] = []
    for finding in examine():
        if not as_json:
            if not findings or findings[-1].group != finding.group:
                click.echo("\n" * bool(findings) + click.style(finding.group, bold=True))
            _show(finding)
        findings.append(finding)
    failed = [finding.name for finding in findings if finding.state == "failed"]
    if as_json:
        facts = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps({"ok": not failed, "findings": facts}, indent=1))
    elif failed:
        names = ", ".join(dict.fromkeys(failed))
        click.secho(f"\n`mpsnet run` cannot do its work here, see: {names}.", fg="red")
    else:
        click.echo("\nAll that `mpsnet run` needs is here.")
    context.exit(bool(failed))


def _show(finding: Finding) -> None:
    """Print a line, folded only where a terminal would fold it worse."""
    text = finding.text
    if finding.group == "self-test" and finding.state != "skipped":
        text += f" ({finding.seconds:.1f} s)"
    start = f"{MARKS[finding.state]} {finding.name:{NAME}}"
    lines = _folded(text, start)
    if finding.advice:
        lines += _folded(finding.advice, " " * len(start) + "> ")
    click.secho("\n".join(lines), fg=COLOURS.get(finding.state))


def _folded(text: str, start: str) -> list[str]:
    if not sys.stdout.isatty():
        return [start + text]
    return textwrap.wrap(
        text,
        shutil.get_terminal_size().columns,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
