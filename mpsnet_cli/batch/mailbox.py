"""Where tasks on a cluster leave messages for the batch; light, as it has a process of its own."""

from __future__ import annotations


class Mailbox:
    """Holds messages, pickled, until they are taken."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    def put(self, message: bytes) -> None:
        """Add a message."""
        self._messages.append(message)

    def take(self) -> list[bytes]:
        """Return the messages that have come since the last time, in their order."""
        messages, self._messages = self._messages, []
        return messages
