"""How far a study has come, and about how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Parts:
    """The parts of a study with the minutes that each was seen to take, on some processor.

    ``begin(name)`` says which part begins, how long the study has run, and what is left: the minutes of this
    part and of those to come, times how much slower or faster the parts so far were. Parts that took less
    than a twentieth of their time were there already, and say nothing of the speed.
    """

    def __init__(
        self,
        minutes: Mapping[str, float],
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.minutes, self.say, self.clock = dict(minutes), say, clock
        self.start = self.since = clock()
        self.current: str | None = None
        self.expected, self.taken = 0.0, 0.0  # minutes of the parts that tell the speed

    def begin(self, name: str) -> None:
        """Say that the part ``name`` begins; KeyError for one that was not announced."""
        now = self.clock()
        if self.current is not None:
            taken = (now - self.since) / 60
            if taken > self.minutes[self.current] / 20:
                self.expected, self.taken = self.expected + self.minutes[self.current], self.taken + taken
        names = list(self.minutes)
        place = names.index(name) if name in names else None
        if place is None:
            raise KeyError(name)
        left = sum(self.minutes[other] for other in names[place:])
        left *= self.taken / self.expected if self.expected else 1.0
        self.current, self.since = name, now
        self.say(
            f"part {place + 1} of {len(names)}, {name}: {(now - self.start) / 60:.0f} minutes so far, about "
            f"{left:.0f} left"
        )
