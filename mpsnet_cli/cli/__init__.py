"""The command line: one module for each command, loaded only when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from mpsnet_cli._version import __version__

COMMANDS = (
    "run",
    "batch",
    "export",
    "weights",
    "eval",
    "pretrain",
    "train",
    "detector",
    "features",
    "synth",
    "attention",
    "doctor",
)


class LazyGroup(click.Group):
    """Import a command's module when the command is needed, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mpsnet")
def main() -> None:
    """Turn videos of people into SMPL body motion, overlays and meshes, offline, with MPS-Net."""
