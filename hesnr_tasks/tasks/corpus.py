"""The trajectories of a run, rendered and labelled, shared by its tasks: no file is read and no text lexed twice.

Only ids and digests stay in memory. Trajectories and labelled texts go into a scratch file as they are read, and come
back one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from hesnr_tasks import demo
from hesnr_tasks.backends import labelled_key
from hesnr_tasks.backends.base import Labelled
from hesnr_tasks.files.atomic import Place, ScratchFile
from hesnr_tasks.filters import char_codes
from hesnr_tasks.formats import load
from hesnr_tasks.tasks.settings import TaskSettings
from hesnr_tasks.trajectory import Kind, Trajectory
from hesnr_tasks.trajectory.rendering import ActionSource, ChatTemplate, NativeRenderer, Passed, Rendered, Span, render

__all__ = ["Corpus", "StoredRendering", "StoredTrajectory", "open_corpus"]

_KINDS = tuple(Kind)


class StoredTrajectory(NamedTuple):
    """What is kept of a trajectory."""

    id: str
    instance_id: str | None
    resolved: bool | None
    place: Place  # of all of it, in the scratch file


class StoredRendering(NamedTuple):
    """A labelled text in a scratch file."""

    key: str  # hash of the text and its labels
    characters: int
    scratch: ScratchFile
    place: Place

    def read(self) -> Labelled:
        """The text, from the scratch file."""
        (text, passed, actions), (spans, codes, *indices) = self.scratch.get(self.place)
        columns = spans.tolist()
        sources = None if actions is None else tuple(map(ActionSource, actions, indices[::2], indices[1::2]))
        rendered = Rendered(
            text,
            tuple(Span(start, end, _KINDS[kind], turn, bool(control)) for start, end, kind, turn, control in columns),
            sources,
            passed and Passed(*passed),
        )
        return Labelled(rendered, codes)


class Corpus:
    """Trajectories with something the agent wrote, in file order."""

    def __init__(self, trajectories: Iterable[Trajectory] = ()) -> None:
        self._scratch = ScratchFile()
        self.documents = [self._keep(trajectory) for trajectory in trajectories]
        self._stored: dict[tuple[int, str], StoredRendering] = {}

    @classmethod
    def load(cls, sources: tuple[str, ...], **options: Any) -> Corpus:
        """The trajectories that `formats.load` gives, one in memory at a time."""
        corpus = cls()
        corpus.documents = load(sources, keep=corpus._keep, **options)
        return corpus

    def __len__(self) -> int:
        return len(self.documents)

    def _keep(self, trajectory: Trajectory) -> StoredTrajectory:
        place = self._scratch.put(trajectory.to_json())
        return StoredTrajectory(trajectory.id, trajectory.instance_id, trajectory.resolved, place)

    def labelled(
        self, index: int, rendering: str, template: ChatTemplate | NativeRenderer | None = None
    ) -> StoredRendering:
        """Trajectory `index`, rendered and labelled; once, except for templates, which belong to one model."""
        stored = self._stored.get((index, rendering)) if template is None else None
        if stored is None:
            value, _ = self._scratch.get(self.documents[index].place)
            stored = self._store(render(Trajectory.from_json(value), rendering, template))
            if template is None:
                self._stored[index, rendering] = stored
        return stored

    def _store(self, rendered: Rendered) -> StoredRendering:
        codes, sources = char_codes(rendered), rendered.sources
        spans = [(s.start, s.end, _KINDS.index(s.kind), s.turn, s.control) for s in rendered.spans]
        place = self._scratch.put(
            (rendered.text, rendered.passed, None if sources is None else [source.action for source in sources]),
            np.array(spans, np.int32).reshape(-1, 5),
            codes,
            *(index for source in sources or () for index in (source.text_index, source.action_index)),
        )
        return StoredRendering(labelled_key(rendered.text, codes), len(rendered.text), self._scratch, place)


_open: WeakValueDictionary[tuple[object, ...], Corpus] = WeakValueDictionary()


def open_corpus(settings: TaskSettings) -> Corpus:
    """Read the trajectories `settings` name (shared by all tasks alive that name the same)."""
    names = ("config", "split", "only_resolved", "limit", "sample", "sample_seed", "shard", "on_error")
    options = {name: getattr(settings, name) for name in names}
    key = (settings.trajectories, *options.values())
    corpus = _open.get(key)
    if corpus is None:
        sources = settings.trajectories or (str(demo.trajectories_path()),)
        corpus = _open[key] = Corpus.load(sources, **options)
    return corpus
