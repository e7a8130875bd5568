"""The trajectories of a run, rendered and labelled, shared by its tasks: no file is read and no text lexed twice.

Only ids and digests stay in memory. Trajectories and labelled texts go into a scratch file as they are read, and come
back one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from hesnr_tasks import demo
from hesnr_tasks.files.atomic import Record, ScratchFile
from hesnr_tasks.filters import labelled
from hesnr_tasks.formats import load
from hesnr_tasks.scores import Source
from hesnr_tasks.scores.schema import ScoringRequest
from hesnr_tasks.tasks.settings import TaskSettings
from hesnr_tasks.trajectory import Kind, Trajectory
from hesnr_tasks.trajectory.rendering import ActionSource, ChatTemplate, NativeRenderer, Passed, Rendered, Span, render

_KINDS = tuple(Kind)


class Corpus:
    """Trajectories with something the agent wrote, in file order."""

    def __init__(self, trajectories: Iterable[Trajectory] = ()) -> None:
        self._scratch = ScratchFile()
        self._texts: dict[tuple[int, str], tuple[str, int, Record]] = {}  # hash, length and record of a rendering
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
        return (Trajectory.from_json(record()[0]) for record in self._records)

    def _keep(self, trajectory: Trajectory) -> tuple[Source, Record]:
        source = Source(trajectory.id, trajectory.instance_id, trajectory.resolved)
        return source, self._scratch.put(trajectory.to_json())

    def _hold(self, kept: list[tuple[Source, Record]]) -> None:
        self.documents, self._records = [source for source, _ in kept], [record for _, record in kept]

    def request(
        self, index: int, rendering: str, template: ChatTemplate | NativeRenderer | None = None, **wanted: Any
    ) -> ScoringRequest:
        """A request for trajectory `index`, rendered and labelled once, except by templates, which belong to one model.

        Args:
            index: in `documents`.
            rendering: "transcript", "chatml", "template" or "native".
            template: of the model.
            wanted: the request's other fields, such as `mask` and `k`.
        """
        text = self._texts.get((index, rendering)) if template is None else None
        if text is None:
            rendered = labelled(render(Trajectory.from_json(self._records[index]()[0]), rendering, template))
            text = rendered.key, len(rendered.text), self._store(rendered)
            if template is None:
                self._texts[index, rendering] = text
        key, characters, record = text
        name = self.documents[index].id
        return ScoringRequest(name=name, read=partial(_read, record), key=key, characters=characters, **wanted)

    def request_for(self, name: str, rendered: Rendered, **wanted: Any) -> ScoringRequest:
        """A request for another text, which is put into the scratch file; arguments as in `request`."""
        text = labelled(rendered)
        read, characters = partial(_read, self._store(text)), len(text.text)
        return ScoringRequest(name=name, read=read, key=text.key, characters=characters, **wanted)

    def _store(self, rendered: Rendered) -> Record:
        sources, spans = (
            rendered.sources,
            [(s.start, s.end, _KINDS.index(s.kind), s.turn, s.control) for s in rendered.spans],
        )
        return self._scratch.put(
            (rendered.text, rendered.passed, None if sources is None else [source.action for source in sources]),
            np.array(spans, np.int32).reshape(-1, 5),
            rendered.codes,
            *(index for source in sources or () for index in (source.text_index, source.action_index)),
        )


def _read(record: Record) -> Rendered:
    """The labelled text, from the scratch file."""
    (text, passed, actions), (spans, codes, *indices) = record()
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
