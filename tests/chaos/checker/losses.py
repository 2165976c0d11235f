"""The loss that the docs announce: the rows of an asynchronous standby's lag, and only those."""

from model import SECOND, Event, Run
from numbering import Numbering

# A fault that promotes a standby has this name.
FAIL_OVER = "fail-over"
# Ingest stores a confirmed event within this time, also after the recovery from an earlier fault.
STORED_AFTER = 15 * SECOND
# A notification is delivered this long before or after its commit.
DELIVERED_NEAR = SECOND


class Losses:
    def __init__(self, run: Run, numbering: Numbering) -> None:
        lag = int(run.settings.get("lag_seconds", 0) * SECOND)
        is_possible = run.is_lossy and numbering.renewed is not None
        # The begin of each lag, and the moment at which the primary was gone.
        self.windows = [(fault.effective_from - lag, fault.effective_from)
                        for fault in run.faults.values() if is_possible and fault.name == FAIL_OVER]

    def may_lose(self, event: Event, first_delivered: int | None) -> bool:
        """Whether the event may have been stored during a lag, and so may be gone after it."""
        confirmed = event.confirmed
        if confirmed is None:
            return bool(self.windows)
        return any(begin - STORED_AFTER <= confirmed <= gone + DELIVERED_NEAR
                   and (first_delivered is None or first_delivered >= begin - DELIVERED_NEAR)
                   for begin, gone in self.windows)
