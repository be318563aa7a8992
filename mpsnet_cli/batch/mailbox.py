"""What runs on the nodes of a cluster besides the work, and loads no more than it needs."""

from __future__ import annotations

from pathlib import Path

from mpsnet_cli._version import __version__


def look(token: Path | None) -> tuple[str, bool]:
    """Return this node's version, and whether it sees a file."""
    return __version__, token is None or token.exists()


class Mailbox:
    """Where tasks leave messages, pickled, for the batch to take."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    def put(self, message: bytes) -> None:
        """Add a message."""
        self._messages.append(message)

    def take(self) -> list[bytes]:
        """Return the messages that have come since the last time, in their order."""
        messages, self._messages = self._messages, []
        return messages
