"""The steps of all trajectories of one run of score files, under one setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection, load, selection
from hesnr_tasks.metrics import EPSILON
from hesnr_tasks.search.profile_measures import Part, part_of
from hesnr_tasks.search.profile_steps import ARGUMENTS, Measured, Step, measured, steps_of
from hesnr_tasks.trajectory import Kind

__all__ = ["COLUMNS", "UNSHOWN", "Profile", "profile_of", "step_entropies"]

COLUMNS = ("char_start", "char_end")  # of score files, beside those every frame has
UNSHOWN = ("decision_arguments", "combine")  # of `Profile.named`: a note says them to people


class Profile(NamedTuple):
    """The steps of a run; one entry a trajectory in each list. A text that two trajectories have is there twice."""

    frame: Frame
    chosen: Selection
    k: int
    epsilon: float
    place: list[int]  # index of the trajectory in the frame
    rows: list[npt.NDArray[np.int64]]  # the frame's tokens that count; `Measured.peak` is an index into it
    steps: list[list[Step]]
    measured: list[Measured]
    parts: list[Part]
    arguments: int = ARGUMENTS
    how: str = "max"

    @property
    def named(self) -> dict[str, Any]:
        """What every row of a table begins with."""
        about = {"run": self.frame.name, "select": self.chosen.name, "k": self.k, "epsilon": self.epsilon}
        return {**about, "decision_arguments": self.arguments, "combine": self.how}

    def values(self) -> npt.NDArray[np.float64]:
        """The entropies of all measured steps, nats."""
        return np.array([value for part in self.parts for value in part.values], dtype=np.float64)

    def text(self, at: int) -> str:
        """The text of trajectory `at`."""
        return self.frame.store.text(self.frame.entries[self.place[at]].key).rendered.text


def profile_of(
    frame: Frame,
    chosen: Selection,
    k: int = 10,
    epsilon: float = EPSILON,
    *,
    arguments: int = ARGUMENTS,
    how: str = "max",
) -> Profile:
    """The steps of every trajectory of a frame that was loaded with `COLUMNS`; `epsilon` in nats.

    `arguments`: words after the verb that decide too; `how`: one of `entropy.COMBINE`.

    Raises `SettingsError` where the tokens of `chosen` were not all scored.
    """
    counted, included, cut = frame.counted(chosen.mask), frame.included(chosen.mask), frame.cut(chosen.mask)
    found = Profile(frame, chosen, k, epsilon, [], [], [], [], [], arguments, how)
    for i, entry in enumerate(frame.entries):
        if not included[i]:
            continue
        rows = frame.bounds[i] + np.flatnonzero(counted[frame.bounds[i] : frame.bounds[i + 1]])
        entropy, rank = frame.entropy[k][rows], frame.rank[rows]
        steps = steps_of(frame.store.text(entry.key).rendered, arguments)
        decides = (entropy > epsilon) & (rank >= 1) & (rank <= k)
        made = measured(steps, frame.extra["char_start"][rows], frame.extra["char_end"][rows], entropy, decides, how)
        part = part_of(entry.key, made, epsilon, int(cut[i]))
        for _ in range(max(1, len(entry.sources))):
            found.place.append(i)
            found.rows.append(rows)
            found.steps.append(steps)
            found.measured.append(made)
            found.parts.append(part)
    return found


def step_entropies(
    folder: str | Path, k: int = 10, *, arguments: int = ARGUMENTS, how: str = "max"
) -> npt.NDArray[np.float64]:
    """The tool entropies of all measured steps of a folder of score files, nats, with all filters."""
    frame = load(folder, [k], extra=COLUMNS)
    chosen = selection(frame.filters, [Kind.ACTION], frame.filters)
    return profile_of(frame, chosen, k, arguments=arguments, how=how).values()
