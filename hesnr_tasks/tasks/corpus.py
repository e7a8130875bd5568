"""The trajectories of a run, rendered and labelled, shared by its tasks: no file is read and no text lexed twice.

Only ids and digests stay in memory. Trajectories and labelled texts go into a scratch file as they are read, and come
back one by one.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from hesnr_tasks import demo
from hesnr_tasks.files.atomic import ScratchFile
from hesnr_tasks.filters import labelled
from hesnr_tasks.formats import load
from hesnr_tasks.scores import Source
from hesnr_tasks.scores.schema import ScoringRequest
from hesnr_tasks.tasks.settings import TaskSettings
from hesnr_tasks.trajectory import Kind, Trajectory
from hesnr_tasks.trajectory.rendering import ActionSource, ChatTemplate, NativeRenderer, Passed, Rendered, Span, render

_KINDS = tuple(Kind)


class Corpus:
    """Trajectories with something the agent wrote, in file order.

    There can be tens of thousands: in memory is what tells them and their texts apart, a few hundred bytes each.
    """

    def __init__(self, trajectories: Iterable[Trajectory] = ()) -> None:
        self._scratch = ScratchFile()
        self._texts: dict[str, int] = {}  # by key: index in the two that follow
        self._places, self._lengths = array("q"), array("q")
        self._keys: dict[str, dict[int, str]] = defaultdict(dict)  # of trajectories, by rendering
        self._hold([self._keep(trajectory) for trajectory in trajectories])

    @classmethod
    def load(cls, sources: tuple[str, ...], **options: Any) -> Corpus:
        """The trajectories that `formats.load` gives, one in memory at a time."""
        corpus = cls()
        corpus._hold(load(sources, keep=corpus._keep, **options))
        return corpus

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[Trajectory]:
        return (Trajectory.from_json(self._scratch.get(place)[0]) for place in self._trajectories)

    def _keep(self, trajectory: Trajectory) -> tuple[Source, int]:
        source = Source(trajectory.id, trajectory.instance_id, trajectory.resolved)
        return source, self._scratch.put(trajectory.to_json())

    def _hold(self, kept: list[tuple[Source, int]]) -> None:
        self.documents = [source for source, _ in kept]
        self._trajectories = array("q", (place for _, place in kept))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of each trajectory what a sample log says of it: the documents of all tasks."""
        return [{"index": index, **source._asdict()} for index, source in enumerate(self.documents)]

    def text(self, index: int, rendering: str, template: ChatTemplate | NativeRenderer | None = None) -> str:
        """The key of a trajectory's text, rendered and labelled once, except by templates, which belong to one model.

        Args:
            index: in `documents`.
            rendering: "transcript", "chatml", "template" or "native".
            template: of the model.
        """
        keys = self._keys[rendering] if template is None else {}
        if index not in keys:
            trajectory = Trajectory.from_json(self._scratch.get(self._trajectories[index])[0])
            keys[index] = self.add(render(trajectory, rendering, template))
        return keys[index]

    def add(self, rendered: Rendered) -> str:
        """Hold a text; returns its key. A text that is there already is not held again."""
        text = labelled(rendered)
        key, sources = text.key, text.sources
        if key in self._texts:
            return key
        spans = [(s.start, s.end, _KINDS.index(s.kind), s.turn, s.control) for s in text.spans]
        place = self._scratch.put(
            (text.text, text.passed, None if sources is None else [source.action for source in sources]),
            np.array(spans, np.int32).reshape(-1, 5),
            text.codes,
            *(index for source in sources or () for index in (source.text_index, source.action_index)),
        )
        self._texts[key] = len(self._places)
        self._places.append(place)
        self._lengths.append(len(text.text))
        return key

    def characters(self, key: str) -> int:
        """The length of a text."""
        return self._lengths[self._texts[key]]

    def request(self, name: str, key: str, **wanted: Any) -> ScoringRequest:
        """A request for a text.

        Args:
            name: of a trajectory that has it, for messages.
            key: of the text.
            wanted: the request's other fields, such as `mask` and `k`.
        """
        read = partial(self._read, self._places[self._texts[key]])
        return ScoringRequest(name=name, read=read, key=key, characters=self.characters(key), **wanted)

    def _read(self, place: int) -> Rendered:
        """The labelled text, from the scratch file."""
        (text, passed, actions), (spans, codes, *indices) = self._scratch.get(place)
        return Rendered(
            text,
            tuple(Span(a, b, _KINDS[kind], turn, bool(control)) for a, b, kind, turn, control in spans.tolist()),
            None if actions is None else tuple(map(ActionSource, actions, indices[::2], indices[1::2])),
            passed and Passed(*passed),
            codes,
        )


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
