"""What can go wrong, told apart by who can mend it."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend. Its text says what, where, and the nearest valid choice; the command line exits
    with 2.
    """


class TrialFailure(Exception):
    """A deterministic failure of one trial: the same recipe would fail again. It is recorded and the search goes on.

    Attributes:
        reason: a short word to group by: invalid, rejected, non-finite, out-of-memory, raised.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
