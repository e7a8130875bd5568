"""The trajectories of a run, rendered and labelled, shared by its tasks: no file is read and no text lexed twice."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from hesnr_tasks import demo
from hesnr_tasks.backends import labelled_key
from hesnr_tasks.filters import char_codes
from hesnr_tasks.formats import load
from hesnr_tasks.rendering import ChatTemplate, NativeRenderer, Rendered, render
from hesnr_tasks.tasks.settings import TaskSettings
from hesnr_tasks.trajectory import Trajectory

__all__ = ["Corpus", "Labelled", "open_corpus"]


class Labelled(NamedTuple):
    """A rendered text, the label code of each of its characters (rendering.py), and the hash of both."""

    rendered: Rendered
    codes: npt.NDArray[np.uint8]
    key: str


class Corpus:
    """Trajectories with something the agent wrote, in file order."""

    def __init__(self, trajectories: list[Trajectory]) -> None:
        self.trajectories = trajectories
        self._labelled: dict[tuple[int, str], Labelled] = {}

    def labelled(self, index: int, rendering: str, template: ChatTemplate | NativeRenderer | None = None) -> Labelled:
        """Trajectory `index`, rendered and labelled; kept, except for templates, which belong to one model."""
        if template is not None:
            return _label(self.trajectories[index], rendering, template)
        if (index, rendering) not in self._labelled:
            self._labelled[index, rendering] = _label(self.trajectories[index], rendering, None)
        return self._labelled[index, rendering]


_open: WeakValueDictionary[tuple[object, ...], Corpus] = WeakValueDictionary()


def open_corpus(settings: TaskSettings) -> Corpus:
    """Read the trajectories `settings` name (shared by all tasks alive that name the same)."""
    s = settings
    key = (s.trajectories, s.config, s.split, s.only_resolved, s.limit, s.sample, s.sample_seed, s.on_error)
    corpus = _open.get(key)
    if corpus is None:
        sources = s.trajectories or (str(demo.trajectories_path()),)
        trajectories = load(
            sources,
            config=s.config,
            split=s.split,
            only_resolved=s.only_resolved,
            limit=s.limit,
            sample=s.sample,
            sample_seed=s.sample_seed,
            on_error=s.on_error,
        )
        corpus = _open[key] = Corpus(trajectories)
    return corpus


def _label(trajectory: Trajectory, rendering: str, template: ChatTemplate | NativeRenderer | None) -> Labelled:
    rendered = render(trajectory, rendering, template)
    codes = char_codes(rendered)
    return Labelled(rendered, codes, labelled_key(rendered.text, codes))
