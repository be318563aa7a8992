"""What an exception was, in a form that every process can read."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from mpsnet_cli.errors import MpsnetError


@dataclass(frozen=True)
class Fault:
    """An exception in words: some cannot be pickled, and some not unpickled."""

    sentence: str
    traceback: str | None  # of an error that nobody foresaw

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """Put an exception into words."""
        if isinstance(error, MpsnetError):
            return cls(error.message, None)
        # Lone surrogates, as of file names that are no text, must not stop the telling.
        said = traceback.format_exception_only(type(error), error)[-1].strip()
        return cls(said, "".join(traceback.format_exception(error)))
