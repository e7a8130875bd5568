"""One self-contained HTML page to read trajectories in: no network, and nothing of a trajectory is ever markup.

Trajectories travel as JSON in inert `<script type="application/json">` elements, with `<`, `>` and `&` escaped, and
reach the page as text nodes only. A Content-Security-Policy admits the page's own script and style, by hash, and
nothing else: no other script, no request, and (Trusted Types) no way to turn text into markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks import __version__
from hesnr_tasks.errors import DataError
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.rendering import ChatTemplate
from hesnr_tasks.trajectory import Kind, Trajectory, clean
from hesnr_tasks.viewer.model import TokenView, View, columns, totals, view_of

__all__ = ["render", "render_views"]

_SCRIPTS = ("model.js", "tokens.js", "draw.js", "find.js", "controls.js", "main.js")  # in this order
Tokens = Sequence[Sequence[TokenView]]


def render(
    trajectories: Sequence[Trajectory],
    tokens: Tokens | None = None,
    compare: Tokens | None = None,
    *,
    rendering: str = "transcript",
    template: ChatTemplate | None = None,
    names: tuple[str, str] = ("A", "B"),
) -> str:
    """The page of `trajectories`, as HTML.

    `tokens`, one list per trajectory, adds token boundaries and whatever values they carry (`TokenView`, in nats);
    `compare` adds a second model's values of the same tokens and their difference. Their offsets are those of the text
    in `rendering` (`template` as for `hesnr_tasks.rendering.render`). `names` names the two models. Raises `DataError`
    if tokens do not fit the texts.
    """
    return render_views([view_of(t, rendering, template) for t in trajectories], tokens, compare, names)


def render_views(
    views: Sequence[View],
    tokens: Tokens | None = None,
    compare: Tokens | None = None,
    names: Sequence[str] = ("A", "B"),
) -> str:
    """As `render`, for trajectories that are labelled already."""
    _check_lengths(views, tokens, compare)
    data = [
        _script(f"trajectory-{i}", _trajectory(view, tokens[i] if tokens else None, compare[i] if compare else None))
        for i, view in enumerate(views)
    ]
    index = _index(views, names if compare else names[:1])
    title = (
        f"{views[0].trajectory.id} – hesnr inspect" if len(views) == 1 else f"{len(views)} trajectories – hesnr inspect"
    )
    return _fill(title, "\n".join([_script("index", index), *data]))


def _check_lengths(views: Sequence[View], tokens: Tokens | None, compare: Tokens | None) -> None:
    if not views:
        raise DataError("there is no trajectory to show")
    if compare is not None and tokens is None:
        raise DataError("a comparison needs the tokens that it is compared with")
    for given in (tokens, compare):
        if given is not None and len(given) != len(views):
            raise DataError(f"there are {len(views)} trajectories but tokens of {len(given)}")


# --- data -----------------------------------------------------------------------------------------------------------


def _index(views: Sequence[View], names: Sequence[str]) -> dict[str, Any]:
    return {
        "version": __version__,
        "kinds": [kind.value for kind in Kind],
        "filters": list(FILTERS),
        "names": list(names),
        "trajectories": [_entry(view) for view in views],
    }


def _entry(view: View) -> dict[str, Any]:
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


def _trajectory(view: View, tokens: Sequence[TokenView] | None, compare: Sequence[TokenView] | None) -> dict[str, Any]:
    """The text, blocks as [end, kind, turn] and hits as [start, end, bits], flat; offsets in UTF-16 units."""
    offset = _utf16(view.text)
    kinds = list(Kind)
    return {
        "text": view.text,
        "blocks": [n for b in view.blocks for n in (int(offset[b.end]), kinds.index(b.kind), b.turn)],
        "hits": [n for h in view.hits for n in (int(offset[h.start]), int(offset[h.end]), h.bits)],
        "tokens": None if tokens is None else columns(view, tokens, compare, offset),
    }


def _utf16(text: str) -> npt.NDArray[np.int64]:
    """For each character, and for the end, the number of UTF-16 units before it; shape (len(text) + 1,)."""
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    return np.concatenate([[0], np.cumsum(1 + (points > 0xFFFF))]).astype(np.int64)


# --- the page ---------------------------------------------------------------------------------------------------------


def _script(name: str, value: Mapping[str, Any]) -> str:
    text = clean(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{html.escape(name)}">{text}</script>'


def _fill(title: str, data: str) -> str:
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in _SCRIPTS) + "})();\n"
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    parts = {
        "policy": html.escape(policy),
        "title": html.escape(clean(title)),
        "style": style,
        "data": data,
        "script": script,
    }
    page = _asset("page.html").split("%%")  # text, name, text, name, …, text
    return "".join(parts[part] if i % 2 else part for i, part in enumerate(page))


def _asset(name: str) -> str:
    return (resources.files("hesnr_tasks.viewer") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
