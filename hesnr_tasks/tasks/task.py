"""The lm-eval task: trajectories become documents, documents become requests, answers become sums, sums become metrics.

Facts about lm-eval that shape it: a metric's standard error travels as a metric named `<metric>_stderr` that comes
*after* its metric; whatever an aggregation needs must be in the per-document values, because documents are spread over
ranks. What its versions do differently: lm_eval_compat.py.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api.task import Task

from hesnr_tasks.analysis.tool_entropy import MEASURES, ToolEntropyItem, item_of, number, stderr_of, steps_of
from hesnr_tasks.analysis.tool_entropy import measure as measure_steps
from hesnr_tasks.backends import REQUEST_TYPE, iterate_scores, refuse_unscorable
from hesnr_tasks.errors import SettingsError, number_of
from hesnr_tasks.filters import FILTERS, LABELS_VERSION
from hesnr_tasks.lm_eval_compat import (
    LoggedValue,
    OpaqueInstance,
    attach_lm_eval_handlers,
    attach_request_type,
    exit_on_command_line,
    new_instance,
    print_at_exit,
    running_evaluation,
    task_config,
    unchanged_responses,
)
from hesnr_tasks.metrics import (
    METRICS,
    TokenColumns,
    TrajectorySums,
    evaluate,
    measure,
    names_of,
    needed_columns,
    topk_entropy,
)
from hesnr_tasks.scores import StoreError, Wanted
from hesnr_tasks.scores.runs import checkpoint_name, read_run
from hesnr_tasks.scores.schema import OPTIONAL, ScoringRequest, TokenScores
from hesnr_tasks.scores.store import ScoreCache, keeps_scores, scores_dir
from hesnr_tasks.stats import FEWEST_FOR_ERROR, Estimate, effective_number
from hesnr_tasks.tasks.corpus import open_corpus
from hesnr_tasks.tasks.settings import TaskSettings, ToolEntropySettings, describe, native_template, signature
from hesnr_tasks.trajectory.chat_rendering import NativeTemplate, refuse_unusable, steady
from hesnr_tasks.trajectory.rendering import Passed, Rendered, label_mask

_log = logging.getLogger("hesnr_tasks")


@exit_on_command_line()
def topk_loglikelihood(lm: Any, requests: list[OpaqueInstance], **_: Any) -> list[DocumentValues]:
    """Answer lm-eval's requests of our type, in their order, from one forward pass per distinct text.

    lm-eval holds all answers of a run, so token scores become a document's values as soon as its text is scored.
    """
    if getattr(getattr(lm, "cache_hook", None), "dbdict", None) is not None:
        _log.warning("--use_cache does not cover %s requests: they are computed again", REQUEST_TYPE)
    documents, output_path = [request.arguments for request in requests], running_evaluation().output_path
    kept = ((task.settings.scores, task.rendering, task.wanted(key, number)) for key, task, number in documents)
    cache = ScoreCache.of(list(kept), output_path, filters=tuple(FILTERS), labels=LABELS_VERSION)
    values: dict[int, DocumentValues] = {}
    for index, scores, rendered in iterate_scores(lm, _Requests(documents), cache):
        values[index] = documents[index][1].measure(scores, rendered)
    return [values[index] for index in range(len(requests))]


class _Requests(Sequence[ScoringRequest]):
    """What is asked of the documents of all tasks, each request made when it is asked for."""

    def __init__(self, documents: list[tuple[str, HesnrTask, int]]) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: Any) -> Any:
        key, task, number = self._documents[index]
        return task.request(key, number)


attach_request_type(REQUEST_TYPE, topk_loglikelihood)


@dataclass(frozen=True, slots=True)
class DocumentValues:
    """One document's part in every metric of a task: small, because lm-eval holds those of all documents."""

    key: str  # hash of its labelled text
    sums: Any  # of the tokens that count: `TrajectorySums` (T = 1), or what another task makes of them
    tokens: int  # that count and were scored
    tokens_cut: int  # that count and lie beyond the context
    passed: Passed | None  # to a chat template
    run: Mapping[str, Any]  # `TokenScores.run`

    def __str__(self) -> str:
        """Short: lm-eval writes it into its sample log."""
        return f"DocumentValues({self.tokens} of {self.tokens + self.tokens_cut} tokens, text {self.key[:12]})"

    __repr__ = __str__


class HesnrTask(Task):
    """HE-SNR, HE-PPL, PPL and related metrics over the tokens a YAML file (and --metadata) says count.

    Raises `SettingsError` for settings that cannot be used and `DataError` for trajectories that cannot be read.
    """

    VERSION = 1
    OUTPUT_TYPE = REQUEST_TYPE
    settings_type: type[TaskSettings] = TaskSettings

    @exit_on_command_line()
    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        attach_lm_eval_handlers(_log)
        config = dict(config or {})
        evaluation = running_evaluation()
        for cls in type(evaluation.lm).__mro__:
            refuse_unscorable(cls.__name__)  # before any trajectory is read
        self._config = task_config(config, REQUEST_TYPE)
        self.settings = self.settings_type.read(
            self._config.metadata, config.get("fixed"), evaluation.is_model_argument
        )
        self.corpus = open_corpus(self.settings)
        self._mask = label_mask(self.settings.kinds, self.settings.filters, tuple(FILTERS))
        kinds_kept = self.settings.keep if keeps_scores(self.settings.scores, evaluation.output_path) else ()
        self._extra_mask = label_mask(kinds_kept, (), tuple(FILTERS))
        self.rendering = self.settings.render
        self._data = self.settings.data()
        self._run: Mapping[str, Any] = {}
        self._native: NativeTemplate | None = None
        self._carried: list[DocumentValues] = []  # see `_documents`
        self._columns: tuple[str, ...] = ()  # of `TrajectorySums`
        self._estimated: tuple[TrajectorySums, dict[str, Estimate]] | None = None
        self._headline, self._share = math.nan, ""  # of the closing line
        # what lm-eval's Task.__init__ would set; that wants a data set
        self._instances = None
        self.fewshot_rnd = None
        self.__dict__.update(unchanged_responses())
        # lm-eval's W&B logger looks here for what a sample has
        self._config.metric_list = [{"metric": name} for name in self.aggregation() if not name.endswith("_stderr")]

    # --- documents ----------------------------------------------------------------------------------------------------

    def has_training_docs(self) -> bool:
        """No few-shot examples are ever used."""
        return False

    def has_validation_docs(self) -> bool:
        """See `has_training_docs`."""
        return False

    def has_test_docs(self) -> bool:
        """Every trajectory is a test document."""
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """One small document a trajectory; the text stays in the corpus, out of the sample log."""
        return self.corpus.rows

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """The trajectory's id: the text itself is too long to be of use where lm-eval shows this."""
        return str(doc["id"])

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """There is no target beside the text itself."""
        return ""

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **_: Any) -> str:
        """No context: the trajectory is everything the model reads."""
        return ""

    # --- requests -----------------------------------------------------------------------------------------------------

    @exit_on_command_line()
    def build_all_requests(self, *, samples: list[int] | None = None, **kwargs: Any) -> None:
        """As lm-eval's, with two of its traps closed: stale request caches and unsorted `--samples`."""
        if kwargs.pop("cache_requests", False):
            _log.warning("--cache_requests is ignored: lm-eval's key lacks the data, so it can pair old texts with new")
        kwargs.pop("rewrite_requests_cache", None)
        if samples is not None:
            samples.sort()  # in place: lm-eval numbers the documents by this very list
            if samples and not 0 <= samples[0] <= samples[-1] < len(self.corpus):
                raise SettingsError(f"--samples names documents outside 0…{len(self.corpus) - 1}")
        if kwargs.get("system_instruction"):
            _log.warning("--system_instruction is ignored: a trajectory brings its own system prompt")
        self._carried = []
        self._refuse_idle_ranks(samples, kwargs.get("limit"), kwargs.get("world_size", 1))
        super().build_all_requests(samples=samples, **kwargs)

    def _refuse_idle_ranks(self, samples: list[int] | None, limit: int | None, world_size: int) -> None:
        """lm-eval dies on a process without documents while the others wait for it; all of them must stop alike."""
        documents = sum(1 for _ in self.doc_iterator(limit=limit, samples=samples))
        if 0 < documents < world_size:
            raise SettingsError(
                f"{number_of(documents, 'trajectory')} cannot be split over {world_size} processes; start at "
                f"most {documents}"
            )

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> OpaqueInstance:
        """One request: the labelled text and which of its tokens count."""
        chat_template, wanted = kwargs.pop("chat_template", None), kwargs.pop("apply_chat_template", False)
        if self.settings.render == "native":
            template: Any = self._native_template(chat_template)
        else:
            template = self._template(chat_template, wanted)
        key = self.corpus.text(doc["index"], self.rendering, template)
        return new_instance(str(self.config.task), REQUEST_TYPE, doc, (key, self, doc["index"]), **kwargs)

    def request(self, key: str, number: int) -> ScoringRequest:
        """What is asked of the text of document `number`, whose key is `key`."""
        return self.corpus.request(
            self.corpus.documents[number].id,
            key,
            mask=self._mask,
            k=self.settings.k,
            overflow=self.settings.overflow,
            extra_mask=self._extra_mask,
            full_vocabulary=self._full_vocabulary,
            window=self.settings.window,
        )

    @cached_property
    def _full_vocabulary(self) -> bool:
        return not {*OPTIONAL}.isdisjoint(needed_columns(self._names()))

    def wanted(self, key: str, number: int) -> Wanted:
        """What score files say of document `number`, whose text has the key `key`."""
        mask = int(self._mask | self._extra_mask)
        return Wanted(str(self.config.task), number, key, mask, self.corpus.documents[number], self._data)

    def identify(self, key: str) -> tuple[Any, ...]:
        """What lm-eval logs of a request: the text, its length, and which of its tokens are asked for."""
        return key, self.corpus.characters(key), int(self._mask), self.settings.k

    def _template(self, chat_template: Callable[..., Any] | None, wanted: bool) -> Callable[..., Any] | None:
        if not wanted or chat_template is None:
            return None
        if self.settings.render != "transcript":
            raise SettingsError(f"--apply_chat_template and render={self.settings.render} exclude each other")
        lm = getattr(chat_template, "__self__", None)
        self.rendering = "template"
        # without a generation prompt lm-eval strips the last message's end marker
        template = partial(chat_template, add_generation_prompt=True)
        if (tokenizer := getattr(lm, "tokenizer", None)) is None:
            return template
        refuse_unusable(tokenizer)
        return steady(template, tokenizer, getattr(lm, "chat_template_args", None))

    def _native_template(self, chat_template: Callable[..., Any] | None) -> NativeTemplate:
        """The model's chat template with its tokenizer, which lm-eval gives tasks only with --apply_chat_template."""
        if self._native is None:
            lm = getattr(chat_template, "__self__", None) or running_evaluation().lm
            tokenizer = getattr(lm, "tokenizer", None)
            if not hasattr(tokenizer, "apply_chat_template"):
                raise SettingsError(
                    "render=native needs the model's tokenizer, and this backend has none here "
                    "(for a server: tokenizer_backend=huggingface). Use render=transcript or render=chatml."
                )
            self._native = native_template(tokenizer, self.settings)
        return self._native

    # --- results ------------------------------------------------------------------------------------------------------

    def measure(self, scores: TokenScores, rendered: Rendered) -> DocumentValues:
        """What all metrics need of one trajectory.

        One that overflow=skip leaves out is told from the others by its cut tokens: see `_included`.
        """
        counted, cut = scores.selected(self._mask), scores.count_cut(self._mask)
        sums = self._sums(scores, counted, rendered)
        return DocumentValues(scores.key, sums, int(counted.sum()), cut, rendered.passed, scores.run)

    def _sums(self, scores: TokenScores, counted: npt.NDArray[np.bool_], rendered: Rendered) -> Any:
        columns = TokenColumns.of_scores(scores, counted, self.settings.k, rendered.text)
        sums = TrajectorySums.of(columns, self.settings.epsilon, self.settings.k, self._names())
        if self._columns != sums.names:  # one tuple for all
            self._columns = sums.names
        return TrajectorySums(sums.values.copy(), self._columns)  # without the array that it is a view of

    def process_results(self, doc: dict[str, Any], results: list[DocumentValues]) -> dict[str, float]:
        """Every metric of one trajectory, then the same for its standard error."""
        document, tokens = results[0], results[0].tokens
        self._run = document.run
        values = {**self._values(document), "scored": tokens / ((tokens + document.tokens_cut) or math.nan)}
        # a metric must precede its error: lm-eval overwrites `<metric>_stderr` when it meets the metric
        errors = {name: math.nan for name in self.aggregation() if name not in values}
        first = next(iter(values))  # carries the trajectory for all: there can be tens of thousands
        return {**values, **errors, first: LoggedValue(values[first], document)}

    def _documents(self, values: Iterable[float]) -> list[DocumentValues]:
        """Of all trajectories, which come with the values of the first metric and stay for the others."""
        self._carried = [v.payload for v in values if isinstance(v, LoggedValue)] or self._carried
        return self._carried

    def _values(self, document: DocumentValues) -> dict[str, float]:
        """Of one trajectory alone, by metric."""
        names = self._names()
        return {name: float(evaluate(METRICS[name], *document.sums.parts(name))[0]) for name in names}

    def aggregation(self) -> dict[str, Callable[[Iterable[float]], Any]]:
        """Pooled values and cluster-bootstrap errors from the per-trajectory sums; counts and shares have no error."""
        values = {name: partial(self._value, name) for name in self._names()}
        errors = {f"{name}_stderr": partial(self._error, name) for name in values if METRICS[name].denominator}
        return {**values, "scored": self._scored, **errors}

    def aggregate(self, bootstrap_iters: int | None = None) -> Any:
        """As lm-eval 0.5's, which would bootstrap each value, our standard errors too, 100 000 times."""
        return super().aggregate(bootstrap_iters=0)

    def higher_is_better(self) -> dict[str, bool]:
        """The direction of every metric that has one."""
        directions = {name: METRICS[name].higher_is_better for name in self._names()}
        return {name: up for name, up in directions.items() if up is not None}

    def _names(self) -> tuple[str, ...]:
        """The metrics of this task that one text is enough for, and its kinds of tokens."""
        names = names_of(self.settings.metrics)
        return tuple(name for name in names if "frequency" not in METRICS[name].needs)

    def _estimates(self, values: Iterable[float]) -> tuple[TrajectorySums, dict[str, Estimate]]:
        """The sums of all trajectories and every metric of them: from the same resamples, so made together."""
        documents = self._documents(values)
        # by text hash: the resamples must not depend on the order of arrival
        rows = [document.sums.values for document in sorted(self._included(documents), key=lambda d: d.key)]
        nothing = documents[0].sums[:0]
        sums = TrajectorySums(np.concatenate([nothing.values, *rows]), nothing.names)
        if self._estimated is None or not np.array_equal(self._estimated[0].values, sums.values, equal_nan=True):
            options = {"resamples": self.settings.resamples, "seed": self.settings.bootstrap_seed}
            once, floor = np.ones(len(sums), np.int64), self.settings.min_tokens
            self._estimated = sums, measure(sums[None], once, self._names(), min_tokens=floor, **options)[0]
        return self._estimated

    def _value(self, name: str, values: Iterable[float]) -> float:
        """A metric; N/A (NaN) over fewer tokens than `min_tokens`, with one warning for 𝓗 and one for the others."""
        sums, estimates = self._estimates(values)
        value, counted = estimates[name].value, int(sums.counted(name).sum())
        if name == "he_snr":
            self._headline = value
        if name in ("he_snr", "ppl") and value != value:
            high = f"𝓗 (H_top{self.settings.k} > {self.settings.epsilon:.4f}, target among the candidates)"
            tokens, which = (high, "he_snr and he_ppl") if name == "he_snr" else ("the set that counts", "all metrics")
            _log.warning(
                "%s: %s has %d tokens, fewer than min_tokens=%d: %s are NaN (N/A)", self.config.task, tokens,
                counted, max(1, self.settings.min_tokens), which,
            )  # fmt: skip
        lacking = {*OPTIONAL}.intersection(METRICS[name].needs)
        if lacking and value != value and counted >= max(1, self.settings.min_tokens):
            _log.warning(
                "%s: %s is N/A: %s needs the logits of the whole vocabulary, which this model's backend does not "
                "return. Score with --model hf.", self.config.task, name, ", ".join(lacking),
            )  # fmt: skip
        return value

    def _error(self, name: str, values: Iterable[float]) -> float | str:
        """A standard error; "N/A", which lm-eval prints, where the value is withheld or trajectories are too few."""
        error = self._estimates(values)[1][name].stderr
        if name == "he_snr":  # errors come after all values
            print_at_exit(self._closing_line(error), warning=False)
        return "N/A" if error != error else error

    def _included(self, documents: list[DocumentValues]) -> list[DocumentValues]:
        """Without the trajectories that overflow=skip leaves out."""
        return [d for d in documents if not d.tokens_cut] if self.settings.overflow == "skip" else documents

    def _scored(self, values: Iterable[float]) -> float:
        """The share of the tokens that would count that was scored. The last of all values: signs and sums up."""
        documents = self._documents(values)
        included = self._included(documents)
        scored, wanted = sum(d.tokens for d in included), sum(d.tokens + d.tokens_cut for d in documents)
        self._sign(documents, included)
        self._warn_last(scored, wanted, documents)
        return scored / wanted if wanted else math.nan

    def _sign(self, documents: list[DocumentValues], included: list[DocumentValues]) -> None:
        """Put the numbers' signature into the configuration that lm-eval saves with the results."""
        empty = {document.key for document in included if not document.tokens}
        if empty:
            names = [i.doc["id"] for i in self.instances if i.arguments[0] in empty]  # other ranks know the others
            _log.warning(
                "%s: no token counts in %d of %d trajectories (nothing left after filters, or all of it beyond the "
                "context): %s", self.config.task, len(empty), len(included), ", ".join(names[:5]),
            )  # fmt: skip
        template = self._native.describe(_passed(documents)) if self._native else None
        texts = [(document.key, document.tokens_cut) for document in included]
        signed = signature(self.settings, self.rendering, texts, self._run, template)
        if len(included) < len(documents):
            signed["trajectories_skipped"] = len(documents) - len(included)
        self._config.metadata["signature"] = signed
        _log.info("%s: %s", self.config.task, describe(signed))

    def _closing_line(self, error: float) -> str:
        """The result in a sentence, and the command that goes on from here."""
        source, output = self.settings.trajectories or "the demo", running_evaluation().output_path
        where = source if isinstance(source, str) else ", ".join(map(str, source))
        follow = (
            f"hesnr report {output}" if output else "the same with --output_path results/, then hesnr report results/"
        )
        if self.settings.window is not None:  # which `hesnr report` leaves out
            short = self._score_folder()
            follow = (
                f"hesnr analyze WHOLE --against {short} (WHOLE: score files of a pass without window)"
                if short
                else "the same with --output_path results/"
            )
        number = Estimate(self._headline, error)
        value = number.text if self._headline == self._headline else "N/A"
        name = f"{self.config.task} of {checkpoint_name(self._run)}"
        window = "" if self.settings.window is None else f" with a window of {self.settings.window}"
        return f"{name}{window}: he_snr {value}, {self._share} of {where}. Next: {follow}"

    def _score_folder(self) -> Path | None:
        """Where the score files of this run are; None: it keeps none."""
        place = scores_dir(self.settings.scores, running_evaluation().output_path)
        for file in sorted(place[0].rglob("run.json")) if place else ():
            with contextlib.suppress(StoreError):  # another run's, damaged
                if read_run(file.parent)["run"] == dict(self._run):
                    return file.parent
        return None

    def _warn_last(self, scored: int, wanted: int, documents: list[DocumentValues]) -> None:
        """What must not be overlooked, in the log and, on the command line, as the last lines on the screen."""
        task, lines = self.config.task, []
        share = f"{scored / wanted:.1%} of {wanted:,} tokens scored" if wanted else "no token counts"
        self._share = f"{share}, {number_of(len(documents), 'trajectory')}"
        if scored < wanted:
            cut = sum(document.tokens_cut > 0 for document in documents)
            lines.append(
                f"{task}: {'LESS THAN HALF: ' if 2 * scored < wanted else ''}only {scored / wanted:.1%} of the tokens "
                f"that count were scored ({scored:,} of {wanted:,}): longer than the context of "
                f"{self._run.get('max_length')} tokens: {cut} of {number_of(len(documents), 'trajectory')} "
                f"(overflow={self.settings.overflow})"
            )
        if self._native is not None and (text := self._native.dropped_text(_passed(documents))):
            lines.append(f"{task}: {text}")
        if not self.settings.trajectories:
            shipped = number_of(len(documents), "shipped demo trajectory").upper()
            lines.append(
                f"{task}: THESE NUMBERS ARE OF {shipped}, NOT OF YOURS. "
                """Name yours with --metadata '{"trajectories": "PATH"}'"""
            )
        for line in lines:
            _log.warning("%s", line)
            print_at_exit(line)


def _passed(documents: Iterable[DocumentValues]) -> list[Passed]:
    """How the chat template got the trajectories of all processes."""
    return [document.passed for document in documents if document.passed]


# --- `hesnr_tool_entropy` ---------------------------------------------------------------------------------------------

_NAMES = {"steps": "tool_steps", "unmeasured": "tool_steps_unmeasured", "mean": "tool_entropy"}
_PUBLIC = {_NAMES.get(name, f"tool_entropy_{name}"): name for name in MEASURES}
_WITH_ERROR = [public for public, name in _PUBLIC.items() if name not in ("steps", "unmeasured")]  # not of counts


class ToolEntropyTask(HesnrTask):
    """Entropy at the decision tokens of each action: mean, quantiles, skewness, share of high-entropy steps."""

    settings: ToolEntropySettings
    settings_type = ToolEntropySettings

    def _sums(self, scores: TokenScores, counted: npt.NDArray[np.bool_], rendered: Rendered) -> ToolEntropyItem:
        rank, k, epsilon = scores.scores.rank[counted], self.settings.k, self.settings.epsilon
        entropy = topk_entropy(scores.scores.topk_logprobs[counted], k)
        decisive = (entropy > epsilon) & (rank >= 1) & (rank <= k)
        steps = steps_of(rendered, self.settings.decision_arguments)
        spans = (scores.char_start[counted], scores.char_end[counted])
        measured = measure_steps(steps, *spans, entropy, decisive, self.settings.combine)
        return item_of(scores.key, measured, epsilon)

    def _values(self, document: DocumentValues) -> dict[str, float]:
        return {public: number(name, [document.sums]) for public, name in _PUBLIC.items()}

    def aggregation(self) -> dict[str, Callable[[Iterable[Any]], Any]]:
        """Pooled over steps; errors from the cluster bootstrap over trajectories."""
        values = {public: partial(self._pooled, name) for public, name in _PUBLIC.items()}
        errors = {f"{public}_stderr": partial(self._spread, _PUBLIC[public]) for public in _WITH_ERROR}
        return {**values, "scored": self._scored, **errors}

    def higher_is_better(self) -> dict[str, bool]:
        """None of these numbers has a better end."""
        return {}

    def _pooled(self, name: str, items: Iterable[Any]) -> float:
        return number(name, self._steps(items))

    def _spread(self, name: str, items: Iterable[Any]) -> float | str:
        steps = self._steps(items)
        if effective_number(np.array([item.sums()[0] for item in steps])) < FEWEST_FOR_ERROR:
            return "N/A"  # lm-eval prints it
        return stderr_of(name, steps, self.settings.resamples, self.settings.bootstrap_seed)

    def _steps(self, values: Iterable[Any]) -> list[ToolEntropyItem]:
        """Of the trajectories that are not left out."""
        return [document.sums for document in self._included(self._documents(values))]

    def _sign(self, documents: list[DocumentValues], included: list[DocumentValues]) -> None:
        super()._sign(documents, included)
        self._config.metadata["signature"] |= {
            "decision_arguments": self.settings.decision_arguments,
            "combine": self.settings.combine,
        }
