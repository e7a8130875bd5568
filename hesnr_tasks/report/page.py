"""One self-contained HTML page of a whole report: no script, no request, nothing of a name or trajectory is markup.

A Content-Security-Policy admits the page's own style, by hash, and images within the page; nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from hesnr_tasks import __version__
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.report import markup
from hesnr_tasks.report.data import Study
from hesnr_tasks.report.drawing import NAMES, Drawing, tokens_name
from hesnr_tasks.report.leaderboard import boards, context_boards
from hesnr_tasks.report.markup import text

__all__ = ["Drawn", "render"]

_FIRST = 6  # rows of agreement shown at once: three metrics, unfiltered and filtered
_READ = (
    "HE-SNR is the mean of p(token) / H_top10 over the tokens where the model hesitates between real continuations "
    "(H_top10 > ε) and the text takes one of its ten candidates; HE-PPL is the perplexity of those tokens, PPL that of "
    "all that count. ↑: more is better, ↓: less is better.",
    "± is one standard error; intervals are 95 %, over whole trajectories, because tokens of one trajectory are alike. "
    "They widen where few trajectories, or a few long ones, make the number, and are withheld where these tell no more "
    "than four equal ones would. Scored: share of the tokens that would count; (!): below a half.",
    "Intervals of two checkpoints may overlap although their difference is sure: all checkpoints read the same "
    "trajectories. The table of neighbouring checkpoints has the paired differences; hesnr compare has any pair.",
    "Numbers made differently (data, filters, k, ε, rendering, tokenizer, context …) are never ranked together.",
    "Agreement with downstream scores: the sign of PPL and HE-PPL is turned, so +1 always means “orders checkpoints as "
    "the downstream score does”. Decision accuracy is the share of pairs of checkpoints ordered alike; 0.5 is chance. "
    "The interval over checkpoints says what other checkpoints might have given, the one over trajectories what other "
    "trajectories might have. Checkpoints of one training run are not independent, and downstream scores have errors "
    "of their own that neither interval knows. With a few checkpoints a high correlation means little.",
)


class Drawn(NamedTuple):
    """A figure that was made: its SVG, and the CSV files of its numbers."""

    drawing: Drawing
    svg: bytes
    csvs: Mapping[str, str]


def render(study: Study, tables: Mapping[str, Table], figures: Sequence[Drawn], by: str = "step") -> str:
    """The page, as HTML. `tables`: correlations, ablation, neighbours, entropy_peaks, cases."""
    tables_of_models = [*boards(study.rows, study.ladder, by), *context_boards(study)]
    sections = [
        ("leaderboard", "Leaderboard", "".join(map(markup.board, tables_of_models))),
        ("agreement", "Agreement with the downstream score", _agreement(study, tables["correlations"])),
        ("ablation", "Token type and filter", _ablation(study, tables["ablation"])),
        ("neighbours", "Neighbouring checkpoints: difference over noise", _neighbours(tables["neighbours"])),
        ("figures", "Figures", "".join(_figure(one) for one in figures)),
        ("peaks", "Where entropies gather", _peaks(tables["entropy_peaks"])),
        ("cases", "Single decisions", _cases(tables["cases"])),
        ("missing", "What is missing", markup.missing(study.missing, study.notes)),
        ("reading", "How to read this", "".join(f"<p>{text(one)}</p>" for one in _READ)),
        ("signature", "Signature", _signature(study)),
    ]
    filled = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{text(title)}</a>' for name, title, _ in filled)
    body = "".join(f'<section id="{name}"><h2>{text(title)}</h2>{content}</section>' for name, title, content in filled)
    return _page(f"{len(study.ladder)} checkpoints", f"<p class='lead'>{_lead(study)}</p><nav>{links}</nav>{body}")


def _lead(study: Study) -> str:
    names = [one.name for one in study.ladder]
    span = f"{text(names[0])} to {text(names[-1])}" if len(names) > 1 else text(names[0])
    scored = f"{len(study.digests)} with score files, {len(study.downstream)} with a downstream score"
    made = f"k = {study.k}, ε = {study.epsilon:.4f}, hesnr-tasks {__version__}"
    return f"{len(names)} checkpoints, {span}; {scored}. {made}."


def _agreement(study: Study, table: Table) -> str:
    if not table.rows:
        return "<p>No downstream scores were given, or fewer than two checkpoints have one.</p>"
    rows = [{**row, "select": tokens_name(row["select"]), "metric": NAMES[row["metric"]]} for row in table.rows]
    scores = ", ".join(f"{text(name)}: {score.value:g}" for name, score in study.downstream.items())
    notes = "".join(f"<li>{text(note)}</li>" for note in table.notes)
    leading = {"select": "tokens", "metric": "metric"}
    first, others = (markup.agreement_table(part, leading) for part in (rows[:_FIRST], rows[_FIRST:]))
    more = f"<details><summary>The same for every row of the ablation</summary>{others}</details>"
    return f"{first}{more}<ul>{notes}</ul><p><small>Downstream scores: {scores}.</small></p>"


def _ablation(study: Study, table: Table) -> str:
    if not table.rows:
        return ""
    names = [one.name for one in study.ladder if any(one.name in row for row in table.rows)]
    headings = ["tokens", "filter", "r", "τ", "paper r", "paper τ", *map(text, names)]
    keys = ["tokens", "filter", "pearson", "kendall", "paper_pearson", "paper_kendall", *names]
    rows = [[markup.cell(row.get(key)) for key in keys] for row in table.rows]
    note = (
        "HE-SNR ± one standard error; r and τ: with the downstream score (intervals: table above). The paper's are of "
        "its own models and data."
    )
    return markup.table(headings, rows, words=2) + f"<p><small>{text(note)}</small></p>"


def _neighbours(table: Table) -> str:
    if not table.rows:
        return ""
    headings = ("tokens", "metric", "from", "to", "difference [95 %]", "p", "difference / SE")
    rows = [
        [
            *(text(word) for word in (tokens_name(row["select"]), NAMES[row["metric"]], row["from"], row["to"])),
            *(markup.with_ends(row["difference"]), f"{row['p']:.4f}", markup.signed(row["steps"])),
        ]
        for row in table.rows
    ]
    return markup.table(headings, rows, words=4) + f"<p><small>{text('; '.join(table.notes))}</small></p>"


def _peaks(table: Table) -> str:
    if not table.rows:
        return ""
    headings = list(table.rows[0])
    rows = [[markup.cell(row[name]) for name in headings] for row in table.rows]
    return (
        markup.table(list(map(text, headings)), rows, words=3) + f"<p><small>{text('; '.join(table.notes))}</small></p>"
    )


def _cases(table: Table) -> str:
    if not table.rows:
        return ""
    name = table.rows[0]["run"]
    about = f"{text(name)}, filtered Action tokens; ⏎ line end, ␣ space; bold: the token of the text."
    return f"<p class='about'>{about}</p>{markup.cases(table.rows)}"


def _figure(one: Drawn) -> str:
    drawing = one.drawing
    return markup.figure(drawing.name, drawing.paper, drawing.title, drawing.caption, one.svg, one.csvs)


def _signature(study: Study) -> str:
    made: dict[str, Any] = {
        "report": {"hesnr_tasks": __version__, "k": study.k, "epsilon": study.epsilon}
        | {"resamples": study.resamples, "seed": study.seed},
        "score files": {one.name: one.signature for one in study.digests},
        "results": {f"{row.model}: {row.task}": row.signature or json.loads(row.comparable) for row in study.rows},
    }
    shown = html.escape(json.dumps(made, indent=1, ensure_ascii=True))
    return f"<details><summary>Everything the numbers were made with</summary><pre>{shown}</pre></details>"


def _page(title: str, body: str) -> str:
    style = (resources.files("hesnr_tasks.report") / "templates" / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return "".join(_parts(title, body, style, policy))


def _parts(title: str, body: str, style: str, policy: str) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<meta name="referrer" content="no-referrer">\n'
    yield '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
    yield f"<title>{text(title)} – hesnr report</title>\n<style>{style}</style>\n</head>\n<body>\n"
    yield f"<header><h1>HE-SNR report</h1></header>\n<main>{body}</main>\n</body>\n</html>\n"
