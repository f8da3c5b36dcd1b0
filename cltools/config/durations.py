"""Durations, given in epochs or in optimizer steps: the one place that knows both."""

import re
from dataclasses import dataclass

# Between saves of the resume state while training: in its first hour, and later. A run that has
# gone on for long loses little by ten minutes, and a large state is written less often.
SECONDS_BETWEEN_SAVES = 120.0
LATER_SECONDS_BETWEEN_SAVES = 600.0
SECONDS_OF_FREQUENT_SAVES = 3600.0


def saves_in(seconds: float) -> float:
    """How often the resume state is saved while a run trains for so many seconds."""
    early = min(seconds, SECONDS_OF_FREQUENT_SAVES)
    return early / SECONDS_BETWEEN_SAVES + (seconds - early) / LATER_SECONDS_BETWEEN_SAVES


@dataclass(frozen=True, order=True)
class Duration:
    """`count` epochs or steps; its text is "20 epochs", in file names "20epochs"."""

    unit: str
    count: int

    @classmethod
    def parse(cls, value: int | str, default_unit: str = "epochs") -> "Duration":
        """From 20, "20 epochs" or "300 steps"; a bare number counts in `default_unit`.

        Raises ValueError for anything else.
        """
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(default_unit, value)
        match = (
            re.fullmatch(r"([0-9]{1,9}) ?(epochs|steps)", value) if isinstance(value, str) else None
        )
        if match is None:
            raise ValueError(f"{value!r} is not a duration: write 20, '20 epochs' or '300 steps'")
        return cls(match[2], int(match[1]))

    def in_steps(self, steps_per_epoch: int) -> int:
        return self.count * (steps_per_epoch if self.unit == "epochs" else 1)

    @property
    def slug(self) -> str:
        return f"{self.count}{self.unit}"

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"
