"""When a broken generator is tried again, and when it is given up.

Invariant: no restart loop is endless: after `max_in_a_row` faults without one finished group the answer is "give up".
Pure: no clock, no tasks. Called by `flow.fleet`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RestartPolicy:
    """Exponential back-off between attempts to bring one generator back."""

    max_in_a_row: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    num_in_a_row: int = 0
    num_faults: int = 0
    """Over the whole run."""

    def on_fault(self) -> float | None:
        """Seconds to wait before the next attempt, or None to give the generator up."""
        self.num_in_a_row += 1
        self.num_faults += 1
        if self.num_in_a_row > self.max_in_a_row:
            return None
        return min(self.first_delay_s * 2.0 ** (self.num_in_a_row - 1), self.max_delay_s)

    def on_success(self) -> None:
        """A group finished on this generator: it is well again."""
        self.num_in_a_row = 0
