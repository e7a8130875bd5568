"""One self-contained HTML page to read trajectories in: no network, and nothing of a trajectory is ever markup.

Trajectories travel as compressed JSON and arrays, in base64, in inert `<script>` elements; their index as JSON with
`<`, `>` and `&` escaped. They reach the page as text nodes only. A Content-Security-Policy admits the page's own script
and style, by hash, and nothing else: no other script, no request, and (Trusted Types) no way to turn text into markup.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from hesnr_tasks import __version__
from hesnr_tasks.errors import DataError
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.trajectory import Kind, clean
from hesnr_tasks.viewer.model import CANDIDATES, RunSummary, TokenTable, TokenView, TrajectoryView, token_table, totals

_SCRIPTS = ("model.js", "tokens.js", "draw.js", "find.js", "controls.js", "main.js")  # in this order
_DIFFERENCES = 20  # listed
_MOST_CANDIDATES = 1_000_000  # outside actions; each takes 2.4 bytes of the page
Tokens = Sequence[Sequence[TokenView]]


def render(
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
            raise DataError(f"there are {len(views)} trajectories but tokens of {len(values)}")
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
