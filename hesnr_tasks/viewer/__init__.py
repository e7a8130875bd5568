"""One self-contained HTML page to read trajectories in: no network, and nothing of a trajectory is ever markup.

Trajectories travel as compressed JSON and arrays, in base64, in inert `<script>` elements; their index as JSON with
`<`, `>` and `&` escaped. They reach the page as text nodes only. A Content-Security-Policy admits the page's own script
and style, by hash, and nothing else: no other script, no request, and (Trusted Types) no way to turn text into markup.

The text shown is the one a model would read (`rendering`), so that offsets of score files fit it.
"""

from __future__ import annotations

import base64
import bisect
import gzip
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from hesnr_tasks import __version__
from hesnr_tasks.errors import DataError, HesnrError, SettingsError, number_of
from hesnr_tasks.files import cache_if_unreachable
from hesnr_tasks.filters import FILTERS, labelled
from hesnr_tasks.metrics import EPSILON, METRICS, TokenColumns, TrajectorySums, evaluate, topk_entropy
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.scores.schema import TokenScores
from hesnr_tasks.trajectory import Kind, Trajectory, clean
from hesnr_tasks.trajectory.alignment import Encoder, token_labels, token_turns
from hesnr_tasks.trajectory.rendering import (
    Block,
    ChatTemplate,
    NativeRenderer,
    Rendered,
    kind_code,
    label_mask,
    render,
)

_COUNTED = label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS))  # what the paper's metric counts
CANDIDATES = 10  # shown of each token


class FilterHit(NamedTuple):
    """Characters `start` to `end`, all dropped by the same filters: bit i stands for the i-th of `FILTERS`."""

    start: int
    end: int
    bits: int


@dataclass(frozen=True, slots=True)
class TrajectoryView:
    """A rendered trajectory; the blocks cover its text exactly once, in order, and hits lie in actions."""

    trajectory: Trajectory
    rendered: Rendered
    bits: npt.NDArray[np.uint8]  # (characters,) filters that drop a character, as bit sets; 0 outside actions
    blocks: tuple[Block, ...]
    hits: tuple[FilterHit, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return self.rendered.text

    @property
    def turns(self) -> int:
        """The number of turns."""
        return self.blocks[-1].turn if self.blocks else 0


def view_of(
    trajectory: Trajectory, rendering: str = "transcript", template: ChatTemplate | NativeRenderer | None = None
) -> TrajectoryView:
    """Render and label `trajectory`; errors are those of `hesnr_tasks.trajectory.rendering.render`."""
    rendered = labelled(render(trajectory, rendering, template))
    codes, action = rendered.codes, kind_code(Kind.ACTION)
    bits = np.where(codes > action, codes - action, 0).astype(np.uint8)
    borders = [0, *(np.flatnonzero(np.diff(bits)) + 1).tolist(), len(bits)]
    hits = (FilterHit(a, b, int(bits[a])) for a, b in itertools.pairwise(borders) if a < b and bits[a])
    return TrajectoryView(trajectory, rendered, bits, tuple(rendered.blocks()), tuple(hits))


# --- totals -----------------------------------------------------------------------------------------------------------


@dataclass
class Totals:
    """Counts of a turn or of a whole trajectory. Tokens are None when no tokenizer was given."""

    characters: Counter[Kind] = field(default_factory=Counter)
    kept: int = 0  # action characters that no filter drops
    dropped: Counter[str] = field(default_factory=Counter)  # by filters, of which several may drop a character
    tokens: int | None = None
    counted: int | None = None  # tokens that cover a kept character

    def add(self, other: Totals) -> None:
        """Add the counts of `other` to these."""
        self.characters += other.characters
        self.dropped += other.dropped
        self.kept += other.kept
        if other.tokens is not None and other.counted is not None:
            self.tokens = (self.tokens or 0) + other.tokens
            self.counted = (self.counted or 0) + other.counted


def totals(
    view: TrajectoryView, labels: npt.NDArray[np.uint64] | None = None, turns: npt.NDArray[np.int32] | None = None
) -> list[Totals]:
    """Totals of each turn, the first at index 0.

    Args:
        view: the labelled text.
        labels: of all tokens (`alignment.token_labels`), to count tokens too.
        turns: of all tokens (`alignment.token_turns`).
    """
    by_turn = [Totals() for _ in range(view.turns)]
    for block in view.blocks:
        turn = by_turn[block.turn - 1]
        turn.characters[block.kind] += block.end - block.start
        if block.kind is Kind.ACTION:
            bits = view.bits[block.start : block.end]
            turn.kept += int((bits == 0).sum())
            for i, name in enumerate(FILTERS):
                turn.dropped[name] += int((bits >> i & 1).sum())
    if labels is not None and turns is not None:
        for number, turn in enumerate(by_turn, 1):
            in_turn = labels[turns == number]
            turn.tokens, turn.counted = len(in_turn), int(((in_turn & _COUNTED) != 0).sum())
    return by_turn


# --- tokens -----------------------------------------------------------------------------------------------------------


class TokenView(NamedTuple):
    """One token: the characters `start` to `end` it covers, and a model's values of it (None: not known).

    `surprisal` is −ln p(x_t), `entropy` H_top10, both in nats; `top` lists (text, probability) of the top-k tokens,
    descending. Tokens come in the order of the text. Several may cover one character (its bytes are split).
    """

    start: int
    end: int
    surprisal: float | None = None
    entropy: float | None = None
    in_decision_set: bool = False
    top: Sequence[tuple[str, float]] = ()


def load_pretrained(what: str, path: str) -> Any:
    """The "tokenizer" or the "configuration" at a folder or hub id; runs no code that comes with it.

    Raises:
        HesnrError: there is no transformers.
        SettingsError: there is none, or it cannot be read.
    """
    try:
        from transformers import AutoConfig, AutoTokenizer
    except ImportError:
        raise HesnrError(f"a {what} needs transformers. Install it with: pip install 'hesnr-tasks[hf]'") from None
    try:
        with cache_if_unreachable(path):
            loader: Any = AutoTokenizer if what == "tokenizer" else AutoConfig
            return loader.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the hub, the network and files raise what they like
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
        raise SettingsError(
            f"the {what} {path!r} cannot be loaded ({reason.rstrip('.')}).\n"
            "Give the folder of a checkpoint, or a hub id."
        ) from error


def tokenize(view: TrajectoryView, encoder: Encoder) -> tuple[list[TokenView], list[Totals]]:
    """Tokenise as scoring would: the tokens that cover characters, and the totals of each turn with token counts.

    Raises:
        ScoringError: as `Encoder.encode`.
    """
    encoded = encoder.encode(view.rendered)
    turns = totals(view, token_labels(encoded, view.rendered.codes), token_turns(encoded, view.rendered))
    spans = zip(encoded.start.tolist(), encoded.end.tolist(), strict=True)
    return [TokenView(start, end) for start, end in spans if end > start], turns


class RunSummary(NamedTuple):
    """What a model's scores say of one trajectory, as `hesnr_swe` counts by default (filtered actions, k = 10)."""

    tokens: int  # scored, and count
    he_tokens: int  # of them, in 𝓗
    he_snr: float | None  # None: no token is in 𝓗
    scored: float | None  # share of the tokens that count which fit the context; None: there are none


class ScoredRun:
    """The score files in a folder, as tokens with a model's values. Raises `StoreError` where there are none."""

    def __init__(self, folder: str) -> None:
        self._store = ScoreStore.open(folder)
        self.folder = self._store.folder
        vocabulary = self._store.token_bytes() or ()
        self._texts = [f"⟨{i}⟩" if t is None else t.decode(errors="replace") for i, t in enumerate(vocabulary)]
        self._mask = label_mask([Kind.ACTION], list(FILTERS), list(self._store.signature["filters"]))

    @property
    def rendering(self) -> str:
        """The rendering of the texts that were scored."""
        rendering = str(self._store.signature["render"])
        if rendering not in ("transcript", "chatml", "native"):
            raise SettingsError(
                f"the scores in {self.folder} were made with --apply_chat_template, which is not at hand here. Score "
                "with render=native, transcript or chatml to look at tokens."
            )
        return rendering

    def tokens(self, view: TrajectoryView) -> list[TokenView]:
        """The scored tokens of a trajectory; 𝓗 is that of the paper's metric (filtered actions)."""
        tokens = self._read(view)
        scores = tokens.scores
        entropy = topk_entropy(scores.topk_logprobs, CANDIDATES)
        high = (entropy > EPSILON) & (scores.rank >= 1) & (scores.rank <= CANDIDATES) & tokens.selected(self._mask)
        ids = scores.topk_ids[:, :CANDIDATES].tolist()
        probabilities = np.exp(scores.topk_logprobs[:, :CANDIDATES].astype(np.float64)).tolist()
        texts = [[self._texts[t] if t < len(self._texts) else f"⟨{t}⟩" for t in row] for row in ids]
        return [
            TokenView(
                int(tokens.char_start[i]),
                int(tokens.char_end[i]),
                -float(scores.logprob[i]),
                float(entropy[i]),
                bool(high[i]),
                list(zip(texts[i], probabilities[i], strict=True)),
            )
            for i in range(len(tokens.position))
        ]

    def summary(self, view: TrajectoryView) -> RunSummary:
        """The metrics of a trajectory."""
        tokens = self._read(view)
        counted = tokens.selected(self._mask)
        columns = TokenColumns.of_scores(tokens, counted, CANDIDATES, view.text)
        sums = TrajectorySums.of(columns, EPSILON, CANDIDATES, ("he_snr",))
        value = evaluate(METRICS["he_snr"], *(float(part[0]) for part in sums.parts("he_snr")))
        cut = int(((tokens.labels_cut & self._mask) != 0).sum())
        scored = len(columns) / (len(columns) + cut) if len(columns) + cut else None
        high = int(sums.column("he_tokens")[0])
        return RunSummary(len(columns), high, float(value) if high else None, scored)

    def _read(self, view: TrajectoryView) -> TokenScores:
        key = view.rendered.key
        if key not in self._store:
            raise DataError(
                f"{self.folder} has no scores of trajectory {view.trajectory.id!r} with this text: it was not scored, "
                "or from another file or by another version.\nName the files that were scored, or one of their "
                "trajectories with --id."
            )
        return self._store.read(key)


# --- tokens as columns ------------------------------------------------------------------------------------------------


class TokenDifference(NamedTuple):
    """A token that counts and that two models give different surprisals `a` and `b` (nats)."""

    trajectory: int
    token: int
    turn: int
    text: str
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The tokens of one text as columns for the page; a column that holds nothing is left out.

    `arrays` hold unsigned integers: `gap` from one start to the next and `length`, in UTF-16 units, and for each model
    `a`, `b` what the page shows, to the thousandth: `a.surprisal` and `a.entropy` (1 + millinats; 0: not known),
    `a.decision`, and of the `width` top tokens, all of the first, then all of the second …, `a.top` (1 + index into
    `strings`; 0: none) and `a.share` (1 + thousandths of probability; 0: not known).
    """

    arrays: dict[str, npt.NDArray[Any]]
    strings: list[str]
    unmatched: int
    width: int
    differences: list[TokenDifference]


def token_table(
    view: TrajectoryView,
    tokens: Sequence[TokenView],
    compare: Sequence[TokenView] | None,
    offset: npt.NDArray[np.int64],
    trajectory: int = 0,
    candidates: int = CANDIDATES,
) -> TokenTable:
    """The tokens as columns, and those that count whose surprisals are known of both models, as differences.

    Args:
        view: the text that the tokens cover.
        tokens: in order.
        compare: another model's values of the same tokens, matched by their characters; a token without a match has
            none.
        offset: of each character, and of the end, in UTF-16 units; shape (characters + 1,).
        trajectory: its number, for the differences.
        candidates: kept of each token outside actions, the most likely first.

    Raises:
        DataError: tokens do not fit the text.
    """
    for given in (tokens, compare or ()):
        before = 0
        for i, token in enumerate(given):
            if not before <= token.start < token.end <= len(view.text):
                raise DataError(
                    f"token {i} of trajectory {view.trajectory.id!r} covers characters {token.start} to {token.end}, "
                    f"which does not fit a text of {len(view.text)} characters in order. The scores were made from "
                    "another version or another rendering of it."
                )
            before = token.start
    start, end = (np.array([getattr(t, side) for t in tokens], dtype=np.int64) for side in ("start", "end"))
    others = dict(_keyed(compare or ()))
    matched = [others.get(key) for key, _ in _keyed(tokens)] if compare is not None else []
    if candidates < CANDIDATES:
        actions = np.concatenate([[0], np.cumsum(view.rendered.codes >= kind_code(Kind.ACTION))])

        def shortened(token: TokenView) -> TokenView:
            inside = actions[token.end] > actions[token.start]
            return token if inside else token._replace(top=token.top[:candidates])

        tokens, matched = list(map(shortened, tokens)), [token and shortened(token) for token in matched]
    sets: dict[str, Sequence[TokenView | None]] = {"a": tokens, "b": matched}
    strings: Counter[str] = Counter(text for own in sets.values() for t in own if t for text, _ in t.top)
    index = {text: i for i, (text, _) in enumerate(strings.most_common())}  # frequent ones small: they compress
    width = max((len(t.top) for own in sets.values() for t in own if t), default=0)
    arrays = {"gap": np.diff(offset[start], prepend=0), "length": offset[end] - offset[start]}
    for name, own in sets.items():
        arrays |= {f"{name}.{column}": values for column, values in _values(own, index, width).items()}
    return TokenTable(
        {  # in the fewest bytes that hold them; little-endian
            name: values.astype(next(t for t in ("<u1", "<u2", "<u4") if values.max(initial=0) <= np.iinfo(t).max))
            for name, values in arrays.items()
        },
        list(index),
        sum(t is None for t in matched),
        width,
        _differences(view, tokens, matched, trajectory),
    )


def _keyed(tokens: Sequence[TokenView]) -> Iterator[tuple[tuple[int, int, int], TokenView]]:
    """Each token under its characters and its number among the tokens of the same characters."""
    seen: Counter[tuple[int, int]] = Counter()
    for token in tokens:
        span = (token.start, token.end)
        yield (*span, seen[span]), token
        seen[span] += 1


def _values(tokens: Sequence[TokenView | None], index: dict[str, int], width: int) -> dict[str, npt.NDArray[Any]]:
    """The columns of one model's values that hold something."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in ("surprisal", "entropy"):
        thousandths = _thousandths(np.array([getattr(t, name, None) for t in tokens], dtype=np.float64))
        if thousandths.any():
            columns[name] = thousandths
    decision = np.array([t is not None and t.in_decision_set for t in tokens], dtype=np.uint8)
    if decision.any():
        columns["decision"] = decision
    if any(t is not None and t.top for t in tokens):
        top = np.zeros((width, len(tokens)), dtype=np.int64)
        probability = np.full((width, len(tokens)), np.nan)
        for i, token in enumerate(tokens):
            for k, (text, value) in enumerate(token.top if token else ()):
                top[k, i], probability[k, i] = 1 + index[text], value
        columns |= {"top": top.ravel(), "share": _thousandths(probability).ravel()}
    return columns


def _thousandths(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """1 + thousandths; 0 for what is not finite."""
    finite = np.isfinite(values)
    return np.where(finite, 1 + np.round(1e3 * np.clip(np.where(finite, values, 0.0), 0.0, 4e6)), 0).astype(np.int64)


def _differences(
    view: TrajectoryView, tokens: Sequence[TokenView], matched: Sequence[TokenView | None], trajectory: int
) -> list[TokenDifference]:
    kept = np.concatenate([[0], np.cumsum(view.rendered.codes == kind_code(Kind.ACTION))])
    ends = [block.end for block in view.blocks]
    differences = []
    for i, (own, other) in enumerate(zip(tokens, matched, strict=False)):
        a, b = own.surprisal, other.surprisal if other else None
        if a is None or b is None or not math.isfinite(b - a) or kept[own.end] == kept[own.start]:
            continue
        turn = view.blocks[bisect.bisect_right(ends, own.end - 1)].turn
        differences.append(TokenDifference(trajectory, i, turn, view.text[own.start : own.end], a, b))
    return differences


# --- the page --------------------------------------------------------------------------------------------------------

_SCRIPTS = ("model.js", "tokens.js", "draw.js", "find.js", "controls.js", "main.js")  # in this order
_DIFFERENCES = 20  # listed
_MOST_CANDIDATES = 1_000_000  # outside actions; each takes 2.4 bytes of the page
Tokens = Sequence[Sequence[TokenView]]


def render_page(
    views: Sequence[TrajectoryView],
    tokens: Tokens | None = None,
    compare: Tokens | None = None,
    names: Sequence[str] = ("A", "B"),
    summaries: Sequence[Sequence[RunSummary]] = (),
) -> str:
    """The page of labelled trajectories, as HTML.

    Args:
        views: at least one.
        tokens: of each text, with whatever values they carry; offsets are those of the view's text.
        compare: a second model's values of the same tokens; the page shows the difference too.
        names: of the two models.
        summaries: of each model, the metrics of each trajectory; for the table of trajectories.

    Raises:
        DataError: tokens do not fit the texts.
    """
    if not views:
        raise DataError("there is no trajectory to show")
    if compare is not None and tokens is None:
        raise DataError("a comparison needs the tokens that it is compared with")
    for values in (tokens, compare):
        if values is not None and len(values) != len(views):
            raise DataError(f"there are {number_of(len(views), 'trajectory')} but tokens of {len(values)}")
    kept = candidates_kept(tokens, compare)
    tables: list[TokenTable | None] = []
    texts = {}
    for i, view in enumerate(views):
        points = np.frombuffer(view.text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        offset = np.concatenate([[0], np.cumsum(1 + (points > 0xFFFF))]).astype(np.int64)
        table = token_table(view, tokens[i], compare[i] if compare else None, offset, i, kept) if tokens else None
        tables.append(table)
        texts[f"trajectory-{i}"] = _packed(view, table, offset)
    differences = sorted((d for table in tables if table for d in table.differences), key=lambda d: -abs(d.b - d.a))
    index = {
        "version": __version__,
        "kinds": [kind.value for kind in Kind],
        "filters": list(FILTERS),
        "names": list(names if compare else names[:1]),
        "candidates": kept,
        "trajectories": [_summary(view, [run[i] for run in summaries]) for i, view in enumerate(views)],
        "differences": [d._replace(text=d.text[:60])._asdict() for d in differences[:_DIFFERENCES]],
    }
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "})();\n"
    subject = views[0].trajectory.id if len(views) == 1 else f"{len(views)} trajectories"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hesnr_tasks.viewer"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_function"] = _json
    return environment.get_template("page.html.j2").render(
        policy=f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        title=clean(f"{subject} – hesnr inspect"),
        style=Markup(style),
        script=Markup(script),
        index=index,
        texts=texts,
    )


def candidates_kept(*runs: Tokens | None) -> int:
    """How many candidates a page holds of each token outside actions: all, or fewer so that it stays small."""
    tokens = sum(bool(token.top) for run in runs for of_text in run or () for token in of_text)
    return min(CANDIDATES, _MOST_CANDIDATES // max(1, tokens))


def _summary(view: TrajectoryView, runs: Sequence[RunSummary]) -> dict[str, Any]:
    t = view.trajectory
    return {
        "id": t.id,
        "instance": t.instance_id,
        "resolved": t.resolved,
        "source": t.source,
        "fidelity": t.fidelity.value,
        "warnings": [str(text) for text in t.meta.get("warnings", ())],
        "turns": view.turns,
        "characters": len(view.text),
        "kept": sum(turn.kept for turn in totals(view)),
        "runs": [run._asdict() for run in runs],
    }


def _packed(view: TrajectoryView, table: TokenTable | None, offset: npt.NDArray[np.int64]) -> str:
    """A trajectory for the page: gzip in base64.

    Inside: the length of a header (four bytes), the header (JSON: text; blocks as [end, kind, turn] and hits as
    [start, end, bits], flat, in UTF-16 units; what the arrays are), then the arrays, little-endian. Of an array come
    the first bytes of all elements, then the second …: so they compress best.

    Args:
        view: the labelled text.
        table: its tokens.
        offset: of each character, and of the end, in UTF-16 units.
    """
    kinds = list(Kind)
    arrays = table.arrays if table else {}
    header = {
        "text": view.text,
        "blocks": [n for b in view.blocks for n in (int(offset[b.end]), kinds.index(b.kind), b.turn)],
        "hits": [n for h in view.hits for n in (int(offset[h.start]), int(offset[h.end]), h.bits)],
        "strings": table.strings if table else None,
        "unmatched": table.unmatched if table else 0,
        "width": table.width if table else 0,
        "arrays": [[name, values.dtype.str[1:], len(values)] for name, values in arrays.items()],
    }
    head = _json(header).encode()
    planes = (values.view(np.uint8).reshape(len(values), values.itemsize).T.tobytes() for values in arrays.values())
    data = b"".join([len(head).to_bytes(4, "little"), head, *planes])
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _json(value: Any, **_: Any) -> str:
    """Compact JSON without lone surrogates, for the template's filter `tojson`, which escapes what HTML reads."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _asset(name: str) -> str:
    return (resources.files("hesnr_tasks.viewer") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
