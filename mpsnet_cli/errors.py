"""Every error that a user can cause or meet, as one tree.

    MpsnetError            exit 1   anything that stops a command, in one sentence
    ├── InputError         exit 1   a video, boxes file or argument value that cannot be used
    ├── WeightsError       exit 1   a weight file that is missing, unsafe, corrupt or does not fit
    ├── BodyError          exit 1   a body model file that is missing, unsafe or not SMPL
    ├── OutputError        exit 1   a result that cannot be written, or is in use by another run
    ├── DeviceError        exit 1   a device or precision that this machine does not have
    ├── NoPeopleFound      exit 3   the result is complete and valid, but nobody is in it
    ├── PartialResult      exit 4   the result is valid for the part of the input that could be read
    └── SomeClipsFailed    exit 5   a batch came to its end, but not every clip of it succeeded

Exit 2 is click's own, for wrong usage. Message style: what is wrong, its value, the way out.
"""

from __future__ import annotations

import click


class MpsnetError(click.ClickException):
    """Stop the command with one sentence on stderr and exit code 1."""


class InputError(MpsnetError):
    """A video, boxes file or argument value that cannot be used."""


class WeightsError(MpsnetError):
    """A weight file that is missing, unsafe, corrupt or does not fit."""


class BodyError(MpsnetError):
    """A body model file that is missing, unsafe or not SMPL."""


class OutputError(MpsnetError):
    """A result that cannot be written, or is in use by another run."""


class DeviceError(MpsnetError):
    """A device or precision that this machine does not have."""


class NoPeopleFound(MpsnetError):
    """The result is complete and valid, but nobody is in it."""

    exit_code = 3


class PartialResult(MpsnetError):
    """The result is valid for the part of the input that could be read."""

    exit_code = 4


class SomeClipsFailed(MpsnetError):
    """A batch came to its end, but not every clip of it succeeded."""

    exit_code = 5
