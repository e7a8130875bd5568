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
        labelled = self._labelled.get((index, rendering)) if template is None else None
        if labelled is None:
            rendered = render(self.trajectories[index], rendering, template)
            codes = char_codes(rendered)
            labelled = Labelled(rendered, codes, labelled_key(rendered.text, codes))
            if template is None:
                self._labelled[index, rendering] = labelled
        return labelled


_open: WeakValueDictionary[tuple[object, ...], Corpus] = WeakValueDictionary()


def open_corpus(settings: TaskSettings) -> Corpus:
    """Read the trajectories `settings` name (shared by all tasks alive that name the same)."""
    names = ("config", "split", "only_resolved", "limit", "sample", "sample_seed", "on_error")
    options = {name: getattr(settings, name) for name in names}
    key = (settings.trajectories, *options.values())
    corpus = _open.get(key)
    if corpus is None:
        sources = settings.trajectories or (str(demo.trajectories_path()),)
        corpus = _open[key] = Corpus(load(sources, **options))
    return corpus
