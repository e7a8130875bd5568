"""Pieces of HTML. Every text of a file, name or trajectory goes through `text`, and so is never markup."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hesnr_tasks.errors import printable
from hesnr_tasks.report.data import Missing
from hesnr_tasks.report.leaderboard import Board, number, of_number
from hesnr_tasks.stats import Estimate

__all__ = ["agreement_table", "board", "cases", "cell", "figure", "missing", "signed", "table", "text", "with_ends"]

_STATISTICS = {
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "kendall": "Kendall τ",
    "decision": "decision accuracy",
}
_LARGEST = 64_000  # bytes of a CSV file that the page carries; larger ones lie beside it


def text(value: object) -> str:
    """Escaped; what is not printable becomes a space."""
    return html.escape(printable(str(value)))


def cell(value: Any) -> str:
    """One number or word, escaped."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, Estimate):
        return text(of_number(value))
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.3f}"
    return text(value)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table of cells that are HTML already; the first `words` columns are text, the others numbers."""
    head = "".join(f'<th scope="col"{" class=n" * (at >= words)}>{heading}</th>' for at, heading in enumerate(headings))
    body = "".join(
        "<tr>"
        + "".join(f"<td>{one}</td>" if at < words else f'<td class="n">{one}</td>' for at, one in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def board(one: Board) -> str:
    """A leaderboard."""
    rows = [[text(word) for word in row] for row in one.rows]
    return f"<h3>{text(one.title)}</h3><p class='about'>{text(one.about)}</p>" + table(
        [text(word) for word in one.headings], rows
    )


def agreement_table(rows: Sequence[Mapping[str, Any]], leading: Mapping[str, str]) -> str:
    """Statistics with their two intervals under each value; `leading`: heading of each column before them."""
    headings = [*map(text, leading.values()), "checkpoints", *_STATISTICS.values()]
    body = [
        [*(cell(row.get(name)) for name in leading), cell(row.get("checkpoints"))]
        + [_with_intervals(row, name) for name in _STATISTICS]
        for row in rows
    ]
    return table(headings, body, words=2)


def _with_intervals(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "–"
    value = f"{row[name]:.3f}" if not math.isnan(row[name]) else "–"
    ends = [
        f"{over} [{row[f'{name}_{over}_low']:.2f}, {row[f'{name}_{over}_high']:.2f}]"
        for over in ("checkpoints", "trajectories")
        if not math.isnan(row[f"{name}_{over}_low"])
    ]
    return "<br>".join([f"<b>{value}</b>", *(f"<small>{one}</small>" for one in ends)])


def figure(name: str, paper: str, title: str, caption: str, svg: bytes, csvs: Mapping[str, str]) -> str:
    """A figure as an image of its own, which cannot touch the page, with caption and numbers."""
    links = " ".join(_download(file, content) for file, content in csvs.items())
    picture = base64.b64encode(svg).decode()
    source = f"data:image/svg+xml;base64,{picture}"
    return (
        f'<figure id="{text(name)}"><img alt="{text(title)}. {text(caption)}" src="{source}">'
        f"<figcaption><b>{text(title)}</b> <small>(paper: {text(paper)})</small><br>{text(caption)} "
        f"<small>Numbers: {links}</small></figcaption></figure>"
    )


def _download(file: str, content: str) -> str:
    data = content.encode()
    if len(data) > _LARGEST:
        return f"figures/{text(file)}"
    return f'<a download="{text(file)}" href="data:text/csv;base64,{base64.b64encode(data).decode()}">{text(file)}</a>'


def cases(rows: Sequence[Mapping[str, Any]]) -> str:
    """Single decision tokens: the text before each, the token, and what the model weighed up."""
    return "".join(_case(row) for row in rows)


def _case(row: Mapping[str, Any]) -> str:
    candidates = "".join(
        f"<tr{' class=chosen' if token == row['token_id'] else ''}><td><code>{_visible(word)}</code></td>"
        f'<td class="n">{weight:.3f}</td></tr>'
        for (word, weight), token in zip(row["candidates"], row["candidate_ids"], strict=True)
    )
    facts = f"H = {row['entropy']:.3f} nats, p = {row['p']:.3f}, rank {row['rank']}, turn {row['turn']}"
    return (
        f'<article class="case"><h4>near {text(row["near"])} <small>{text(row["trajectory"])}: {facts}</small></h4>'
        f'<div class="pair"><pre>{html.escape(_lines(row["before"]))}<mark>{_visible(row["token"])}</mark></pre>'
        f"<table><tbody>{candidates}</tbody></table></div></article>"
    )


def _visible(word: str) -> str:
    """A token with its line ends and tabs to be seen."""
    return text(word.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅")


def _lines(value: str) -> str:
    return printable(value, keep="\n\t")


def missing(found: Sequence[Missing], notes: Sequence[str]) -> str:
    """What is not on the page, why, and what gives it."""
    items = [f"<li><b>{text(one.what)}</b>: {text(one.why)}.<br><code>{text(one.command)}</code></li>" for one in found]
    items += [f"<li>{text(note)}</li>" for note in notes]
    return f"<ul>{''.join(items)}</ul>" if items else "<p>Nothing is missing.</p>"


def signed(value: float) -> str:
    """A number with its sign."""
    return "–" if math.isnan(value) else f"{value:+.1f}"


def with_ends(one: Estimate) -> str:
    """Value, error, interval."""
    ends = "" if math.isnan(one.low) else f" <small>[{one.low:.4g}, {one.high:.4g}]</small>"
    return f"{number(one.value, None if math.isnan(one.stderr) else one.stderr)}{ends}"
