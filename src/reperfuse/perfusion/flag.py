"""What a flag is, and in which order flags are said."""

from dataclasses import dataclass

FLAGS = (
    "no_bolus",
    "early_bolus",
    "truncated_bolus",
    "second_bolus",
    "motion",
    "missing_frames",
    "unmeasured_tissue",
    "implausible_brain",
    "uneven_times",
    "contradicting_times",
    "implausible_te",
    "implausible_tr",
    "low_cnr",
    "unreturned_baseline",
    "no_artery",
    "saturated_aif",
    "noisy_aif",
    "implausible_aif",
    "doubtful_aif",
    "doubtful_adc",
)
"""All names, in the order in which flags are said: what spoils most comes first."""


@dataclass(frozen=True)
class Flag:
    """Something about a series that its reader should know."""

    name: str
    """One of `FLAGS`."""
    sentence: str
    """What was found, what follows for the maps, and what to do."""
    value: float | None = None
    """The number that raised it; None where none could be measured."""

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}"


def frames_said(n: int) -> str:
    """A number of frames in words.

    >>> frames_said(1), frames_said(3)
    ('1 frame', '3 frames')
    """
    return "1 frame" if n == 1 else f"{n} frames"
