"""The Python API: `import hesnr_tasks as hesnr`. Its numbers are those of lm_eval, `hesnr analyze` and `hesnr compare`.

Everything here is imported when it is first used; torch only by `score`, pyarrow only by `open_scores`.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.compare import CompareConfig, Run, difference, matched, missing, only_selection, run_of
from hesnr_tasks.analysis.frame import Frame, check_epsilons, check_resamples, context_for
from hesnr_tasks.analysis.frame import load as load_frame
from hesnr_tasks.backends import describe_run, iterate_scores
from hesnr_tasks.errors import DataError, HesnrError, SettingsError, nearest
from hesnr_tasks.files.atomic import ScratchFile
from hesnr_tasks.filters import FILTERS, labelled
from hesnr_tasks.formats import load as load_trajectories
from hesnr_tasks.metrics import EPSILON, METRICS, MIN_TOKENS, measure, metric, names_of, needed_columns
from hesnr_tasks.scores import Entry, ScoreStore, Source, StoredRun, Text, scoring_signature
from hesnr_tasks.scores.schema import ScoringRequest, SequenceScores, TokenScores
from hesnr_tasks.stats import RESAMPLES, SEED, Difference, Estimate
from hesnr_tasks.tasks.corpus import Corpus
from hesnr_tasks.tasks.settings import TaskSettings, native_template, refuse_unknown
from hesnr_tasks.trajectory import Trajectory, rendering
from hesnr_tasks.trajectory.alignment import Encoder
from hesnr_tasks.trajectory.rendering import Rendered, Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Difference",
    "Estimate",
    "LabelledText",
    "Scores",
    "Trajectory",
    "compare",
    "label",
    "load",
    "metric",
    "open_scores",
    "score",
]


_F = TypeVar("_F", bound=Callable[..., Any])
_log = logging.getLogger("hesnr_tasks")


def _in_words_of_python(function: _F) -> _F:
    """Errors that `lm_eval` and `hesnr` users see too name flags; here they name arguments."""

    @functools.wraps(function)
    def with_arguments(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except HesnrError as error:
            text = re.sub(r" (?:in|to) --(?:model_args|metadata)|--model_args (?=\w)", "", str(error))
            flags = re.sub(r"--([a-z][a-z_-]*)", lambda flag: flag[1].replace("-", "_"), text)
            error.args = (flags, *error.args[1:])
            raise

    return with_arguments  # type: ignore[return-value]


@_in_words_of_python
def load(source: str | Path | Sequence[str | Path], **options: Any) -> list[Trajectory]:
    """Read agent trajectories; the format of each record is recognised by its content.

    Args:
        source: a file, glob, folder or hub id, or several.
        options: `config`, `split` (of a hub data set), `only_resolved`, `limit`, `sample`, `sample_seed`,
            `on_error` ("fail" or "skip").

    Returns:
        The trajectories, in a fixed order.

    Raises:
        DataError: for records that cannot be read, or if there are none.
        SettingsError: for an option that does not exist or cannot be used.

    >>> import hesnr_tasks as hesnr
    >>> from hesnr_tasks import demo
    >>> runs = hesnr.load(demo.trajectories_path(), limit=3)
    >>> len(runs), runs[0].messages[0].role
    (3, 'system')
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources or not all(str(item).strip() for item in sources):
        raise SettingsError("load needs a file, glob, folder or hub id, and got an empty name")
    names = ("config", "split", "only_resolved", "limit", "sample", "sample_seed", "on_error")
    for name in options:
        if name not in names:
            raise SettingsError(f"load has no option {name!r}.{nearest(name, names)} There are: {', '.join(names)}")
    TaskSettings.read({name: value for name, value in options.items() if value is not None})
    return load_trajectories([str(item) for item in sources], **options)


class LabelledText:
    """A rendered trajectory whose every character has a kind and the filters that hit it."""

    def __init__(self, rendered: Rendered) -> None:
        self._rendered = labelled(rendered)

    @property
    def text(self) -> str:
        """The text that a model reads."""
        return self._rendered.text

    @property
    def spans(self) -> tuple[Span, ...]:
        """Start, end, kind and turn of every stretch of characters; together they are the text."""
        return self._rendered.spans

    @property
    def key(self) -> str:
        """Hash of the text and its labels: the name of its score file."""
        return self._rendered.key

    def kept(self, kinds: str = "action", filters: str = "all") -> str:
        """The characters that count.

        Args:
            kinds: such as "thought+action".
            filters: what is taken out of actions: "all", "none", or such as "xml+format".
        """
        mask = only_selection(tuple(FILTERS), kinds, filters).mask
        counts = (np.left_shift(np.uint64(1), self._rendered.codes.astype(np.uint64)) & mask) != 0
        return "".join(np.array(list(self.text))[counts]) if self.text else ""


def label(
    trajectory: Trajectory, render: str = "transcript", tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
) -> LabelledText:
    """Render a trajectory and label its characters.

    Args:
        trajectory: one of `load`.
        render: "transcript", "chatml" or "native".
        tokenizer: for "native": whose chat template is used.
        options: of "native": `thoughts`, `template_kwargs`, `calls`, as the settings of these names.

    Raises:
        SettingsError: for "native" without a tokenizer that has a chat template.
        DataError: the template cannot render the trajectory.

    >>> import hesnr_tasks as hesnr
    >>> from hesnr_tasks import demo
    >>> labelled = hesnr.label(hesnr.load(demo.trajectories_path(), limit=1)[0])
    >>> labelled.spans[-1].end == len(labelled.text)
    True
    >>> "<function" in labelled.kept(filters="none"), "<function" in labelled.kept()
    (True, False)
    """
    return LabelledText(rendering.render(trajectory, render, _template(render, tokenizer, options)))


def _template(
    render: str, tokenizer: PreTrainedTokenizerBase | None, options: Mapping[str, Any]
) -> rendering.NativeRenderer | None:
    refuse_unknown(options, ("thoughts", "template_kwargs", "calls"))
    settings = TaskSettings.read(options)
    if render != "native" or tokenizer is None:
        return None
    return native_template(tokenizer, settings)


class Scores:
    """Token scores of one checkpoint on some trajectories, in memory (`score`) or in score files (`open_scores`)."""

    def __init__(self, store: ScoreStore, run: str | StoredRun = "latest") -> None:
        self._store, self._run = store, run
        self._frames: dict[tuple[object, ...], Frame] = {}

    def __len__(self) -> int:
        """The number of trajectories."""
        return sum(max(1, len(entry.sources)) for entry in self.frame().entries)

    @property
    def signature(self) -> Mapping[str, Any]:
        """Every choice behind the scores: model, tokenizer, rendering, context …"""
        return self._store.signature

    def frame(self, k: int = 10, context: int | None = None) -> Frame:
        """All scored tokens as arrays; read once."""
        key = (k, context, needed_columns())
        if key not in self._frames:
            self._frames[key] = load_frame(self._store, (k,), context=context, run=self._run, metrics=names_of("all"))
        return self._frames[key]

    @_in_words_of_python
    def evaluate(
        self,
        *metrics: str,
        kinds: str = "action",
        filters: str = "all",
        epsilon: float | str = EPSILON,
        k: int = 10,
        min_tokens: int = MIN_TOKENS,
        resamples: int = RESAMPLES,
        seed: int = SEED,
    ) -> dict[str, Estimate]:
        """Metrics with standard errors and 95 % intervals over trajectories.

        Args:
            metrics: names of registered metrics (none: the core ones).
            kinds: tokens that count, such as "thought+action".
            filters: what is taken out of actions: "all", "none", or such as "xml+format".
            epsilon: the threshold of decisions, in nats, or such as "ln3".
            k: candidates of each token.
            min_tokens: a metric over fewer tokens is NaN.
            resamples, seed: of the bootstrap.

        Raises:
            SettingsError: for an unknown metric, or tokens that were not scored.

        >>> import hesnr_tasks as hesnr
        >>> scores = hesnr.open_scores("results/scores/CHECKPOINT")
        >>> estimates = scores.evaluate("he_snr", "ppl", "bpb", kinds="thought+action", filters="none")
        >>> {name: estimate.value > 0 for name, estimate in estimates.items()}
        {'he_snr': True, 'ppl': True, 'bpb': True}
        >>> estimates["ppl"].ci_low < estimates["ppl"].value < estimates["ppl"].ci_high
        True
        """
        names = metrics or names_of()
        epsilon = _check(names, epsilon, k, resamples, seed)
        run = self._sums(kinds, filters, epsilon, k, None)
        for note in missing([run], names):
            _log.warning("%s", note)
        options: dict[str, Any] = {"resamples": resamples, "seed": seed, "min_tokens": min_tokens}
        return measure(run.sums[None], run.multiplicity, names, **options)[0]

    def _sums(self, kinds: str, filters: str, epsilon: float, k: int, context: int | None) -> Run:
        frame = self.frame(k, context)
        return run_of(frame, only_selection(frame.filters, kinds, filters), epsilon, k)


@_in_words_of_python
def open_scores(folder: str | Path, run: str = "latest") -> Scores:
    """The scores in a folder of score files, as `lm_eval` with `--output_path` or the setting `scores` writes them.

    Args:
        folder: of one checkpoint; the beginning of its name, such as the checkpoint's, where no other begins so.
        run: "latest", "all", the number of a run, or the hash of its data.

    Raises:
        StoreError: for a folder without score files, or damaged ones, or a beginning that several folders have.

    >>> import hesnr_tasks as hesnr
    >>> len(hesnr.open_scores("results/scores/CHECK"))
    12
    """
    return Scores(ScoreStore.open(folder), run)


@_in_words_of_python
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    runs: Iterable[Trajectory],
    *,
    kinds: str = "thought+action",
    k: int = 10,
    render: str = "transcript",
    overflow: str = "right",
    max_length: int | None = None,
    full_vocabulary: bool = False,
    window: int | None = None,
    **options: Any,
) -> Scores:
    """Score trajectories with a transformers model in memory: the engine and the checks of `lm_eval --model hf`.

    The model is put into evaluation mode while it reads and left as it was.

    Args:
        model: a causal language model, on its device.
        tokenizer: of that model.
        runs: of `load`, or any other iterable: none is held, texts and scores wait in a temporary file.
        kinds: tokens to score.
        k: candidates a token to keep.
        render: "transcript", "chatml", or "native" with the tokenizer's chat template.
        overflow: for texts beyond the context: "right" (score what fits), "skip" (leave out), "error".
        max_length: tokens of a text to read (default: what the model's configuration says).
        full_vocabulary: also compute what the metrics `full_entropy` and `relative_rank_full` need, which takes several
            times as long as all else that is made of the logits.
        window: tokens of context of a short-context pass, as the setting of this name; None: all there are.
        options: of "native", as in `label`.

    Raises:
        ScoringError: for a model that cannot be scored, or NaN logits.

    >>> import hesnr_tasks as hesnr
    >>> from hesnr_tasks import demo
    >>> from transformers import AutoModelForCausalLM, AutoTokenizer
    >>> folder = demo.ladder_paths()[-1][1]
    >>> model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    >>> scores = hesnr.score(model, tokenizer, hesnr.load(demo.trajectories_path(), limit=2))
    >>> scores.evaluate("tokens")["tokens"].value > 100
    True
    """
    from hesnr_tasks.backends import hf
    from hesnr_tasks.backends.hf import LiveModel

    mask = only_selection(tuple(FILTERS), kinds, "none").mask
    TaskSettings.read({"window": window})
    template, corpus = _template(render, tokenizer, options), Corpus()
    sources, requests = [], []
    for run in runs:
        sources.append(Source(run.id, run.instance_id, run.resolved))
        wanted = {"mask": mask, "k": k, "overflow": overflow, "full_vocabulary": full_vocabulary, "window": window}
        requests.append(corpus.request(run.id, corpus.add(rendering.render(run, render, template)), **wanted))
    if not requests:
        raise DataError("there is no trajectory to score")
    live = LiveModel(model, tokenizer, longest=max_length)
    with live.evaluating():
        backend = hf.make(live)
        encoder = Encoder(backend.tokenizer, backend.bos)
        run_signature = describe_run(backend, encoder) | ({} if window is None else {"window": window})
        signature = scoring_signature(run_signature, render=render, overflow=overflow, k=k, filters=tuple(FILTERS))
        name = Path(str(signature["run"].get("model")))
        store = _ScratchStore(name, signature, lambda text: encoder.encode(text).ids)
        for index, scores, _ in iterate_scores(backend, requests):
            store.add(scores, requests[index], sources[index])
    return Scores(store)


@_in_words_of_python
def compare(
    a: Scores,
    b: Scores,
    metric: str = "he_snr",
    *,
    kinds: str = "action",
    filters: str = "all",
    epsilon: float | str = EPSILON,
    k: int = 10,
    common: bool = False,
    min_tokens: int = MIN_TOKENS,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """The difference b - a of a metric, paired by trajectory.

    Args:
        a, b: scores of two checkpoints on the same trajectories, made with the same settings.
        metric: a registered metric that has a better direction.
        kinds, filters, epsilon, k, min_tokens, resamples, seed: as `Scores.evaluate`.
        common: compare on the trajectories that both have, if they differ.

    Returns:
        The difference with its standard error, 95 % interval and two-sided p-value. Where a context truncated one of
        both, only the tokens that both could read count.

    Raises:
        SettingsError, DataError: for scores that must not be compared.

    >>> import hesnr_tasks as hesnr
    >>> scores = hesnr.open_scores("results/scores/CHECKPOINT")
    >>> difference = hesnr.compare(scores, scores, "ppl", kinds="thought+action", filters="none")
    >>> difference.value, difference.p
    (0.0, 1.0)
    """
    epsilon = _check([metric], epsilon, k, resamples, seed)
    if METRICS[metric].better is None:
        raise SettingsError(f"{metric} has no better direction; compare a metric that has")
    context, _ = context_for([a._store, b._store], None)
    pair = [side._sums(kinds, filters, epsilon, k, context) for side in (a, b)]
    (base, other), _ = matched(pair, common=common)
    return difference(base, other, metric, CompareConfig(resamples, seed, min_tokens=min_tokens))


def _check(metrics: Sequence[str], epsilon: float | str, k: int, resamples: int, seed: int) -> float:
    """The threshold in nats. Raises `SettingsError` for what cannot be."""
    for name in metrics:
        if name not in names_of("all"):
            allowed = names_of("all")
            raise SettingsError(f"there is no metric {name!r}; there are {', '.join(allowed)}.{nearest(name, allowed)}")
    check_resamples(resamples, seed)
    return check_epsilons([str(epsilon)], [k])[0]


class _ScratchStore(ScoreStore):
    """Scores that are in no folder, and wait in a scratch file."""

    def __init__(
        self, name: Path, signature: Mapping[str, Any], ids_of: Callable[[Rendered], npt.NDArray[np.int32]]
    ) -> None:
        everything = StoredRun(0, 0, "", (), "", {}, None)
        super().__init__(name, signature, everything)
        self._scratch = ScratchFile()
        self._texts: dict[str, tuple[Entry, int, Callable[[], Rendered]]] = {}
        self._ids_of = ids_of

    def add(self, scores: TokenScores, request: ScoringRequest, source: Source) -> None:
        sources = (*(self._texts[scores.key][0].sources if scores.key in self._texts else ()), source)
        entry = Entry(
            scores.key, "", sources, int(request.scored), self.k, len(scores.position), len(scores.labels_cut),
            scores.tokens_total,
        )  # fmt: skip
        columns: list[Any] = [*(getattr(scores, name) for name in _COLUMNS), *scores.scores.padded()]
        self._texts[scores.key] = entry, self._scratch.put(None, *columns), request.read

    def keys(self) -> list[str]:
        return sorted(self._texts)

    def entry(self, key: str) -> Entry:
        return self._texts[key][0]

    def text(self, key: str) -> Text:
        rendered = self._texts[key][2]()
        return Text(rendered, self._ids_of(rendered))

    def columns(self, key: str, names: Sequence[str]) -> tuple[Entry, dict[str, npt.NDArray[Any]]]:
        entry, place, read = self._texts[key]
        columns = dict(zip((*_COLUMNS, *SequenceScores._fields), self._scratch.get(place)[1], strict=True))
        if not columns.keys() >= {*names}:
            rendered = read()
            columns["text"] = np.frombuffer(rendered.text.encode(), np.uint8)
            if "text_ids" in names:
                columns["text_ids"] = self._ids_of(rendered)
        return entry, {name: columns[name] for name in names}


_COLUMNS = ("position", "token_id", "turn", "label", "char_start", "char_end", "labels_cut")
