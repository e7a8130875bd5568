"""One self-contained HTML page to read trajectories in: no network, and nothing of a trajectory is ever markup.

Trajectories travel as JSON in inert `<script type="application/json">` elements, with `<`, `>` and `&` escaped, and
reach the page as text nodes only. A Content-Security-Policy admits the page's own script and style, by hash, and
nothing else: no other script, no request, and (Trusted Types) no way to turn text into markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from hesnr_tasks import __version__
from hesnr_tasks.errors import DataError
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.trajectory import Kind, clean
from hesnr_tasks.viewer.model import TokenView, TrajectoryView, columns, totals

__all__ = ["render"]

_SCRIPTS = ("model.js", "tokens.js", "draw.js", "find.js", "controls.js", "main.js")  # in this order
Tokens = Sequence[Sequence[TokenView]]


def render(
    views: Sequence[TrajectoryView],
    tokens: Tokens | None = None,
    compare: Tokens | None = None,
    names: Sequence[str] = ("A", "B"),
) -> str:
    """The page of labelled trajectories, as HTML.

    Args:
        views: at least one.
        tokens: of each text, with whatever values they carry; offsets are those of the view's text.
        compare: a second model's values of the same tokens; the page shows the difference too.
        names: of the two models.

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
    index = {
        "version": __version__,
        "kinds": [kind.value for kind in Kind],
        "filters": list(FILTERS),
        "names": list(names if compare else names[:1]),
        "trajectories": [_summary(view) for view in views],
    }
    texts = {
        f"trajectory-{i}": _text(view, tokens[i] if tokens else None, compare[i] if compare else None)
        for i, view in enumerate(views)
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
        data={"index": index, **texts},
    )


def _summary(view: TrajectoryView) -> dict[str, Any]:
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
    }


def _text(
    view: TrajectoryView, tokens: Sequence[TokenView] | None, compare: Sequence[TokenView] | None
) -> dict[str, Any]:
    """The text, blocks as [end, kind, turn] and hits as [start, end, bits], flat; offsets in UTF-16 units."""
    points = np.frombuffer(view.text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    offset = np.concatenate([[0], np.cumsum(1 + (points > 0xFFFF))]).astype(np.int64)  # of each character, and the end
    kinds = list(Kind)
    return {
        "text": view.text,
        "blocks": [n for b in view.blocks for n in (int(offset[b.end]), kinds.index(b.kind), b.turn)],
        "hits": [n for h in view.hits for n in (int(offset[h.start]), int(offset[h.end]), h.bits)],
        "tokens": None if tokens is None else columns(view, tokens, compare, offset),
    }


def _json(value: Any, **_: Any) -> str:
    """Compact JSON without lone surrogates, for the template's filter `tojson`, which escapes what HTML reads."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _asset(name: str) -> str:
    return (resources.files("hesnr_tasks.viewer") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
