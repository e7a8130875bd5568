"""Trajectories to look at, and a model small enough to work out by hand."""

import math

from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from hesnr_tasks.viewer import TokenView

ATTACKS = (
    "<script>window.__hacked=1;document.title='hacked'</script>",
    "</script><script>window.__hacked=2</script>",
    "</style><style>body{display:none}</style>",
    "<!--<script>window.__hacked=3</script>-->",
    "<img src=x onerror=window.__hacked=4>",
    "<svg onload=window.__hacked=5><a href=javascript:window.__hacked=6>x</a></svg>",
    "<iframe srcdoc='<script>parent.__hacked=7</script>'></iframe>",
    "\"><body onload='window.__hacked=8'>",
    "'-alert(1)-'",
    "${window.__hacked=9} {{constructor.constructor('window.__hacked=10')()}}",
    "</textarea></title></noscript><noscript>",
    "<base href=http://attacker.invalid/><link rel=stylesheet href=//attacker.invalid/x.css>",
    "<meta http-equiv=refresh content='0;url=javascript:window.__hacked=11'>",
    "\\u003cscript\\u003e &lt;script&gt; &amp;lt; \u2028 \u2029 %%script%% %%data%%",
    "javascript:window.__hacked=12",
    "<template><slot></slot></template><math><mi//xlink:href='data:x,<script>window.__hacked=13</script>'>",
)


def message(role, *segments):
    return Message(role, tuple(Segment(Kind(kind), text) for kind, text in segments))


def hostile():
    """Every attack in every kind of text, in the id, the instance and the warnings."""
    everything = "\n".join(ATTACKS)
    calls = "".join(f"<parameter=p{i}>{attack}</parameter>\n" for i, attack in enumerate(ATTACKS))
    messages = (
        message("system", ("context", everything)),
        message("user", ("context", everything)),
        message("assistant", ("thought", everything), ("action", f"\n<function=bash>\n{calls}</function>")),
        message("tool", ("observation", (everything + "\n") * 20)),
        message("assistant", ("thought", everything), ("action", everything)),
    )
    return Trajectory(ATTACKS[0], messages, instance_id=ATTACKS[1], source=ATTACKS[4], meta={"warnings": list(ATTACKS)})


def strange():
    """Characters that are not one UTF-16 unit, have no width, turn the text round, or control a terminal."""
    odd = "é e\u0301 😀 👩\u200d💻 漢字 \u202eevil\u202c \u200b\x1b[31mred\x1b[0m \x00\x07\x9b \r\nend\ttab"
    odd += " \ufeff\u2028 İi ﬁ"
    return Trajectory(
        "strange/😀\x1b]0;owned\x07",
        (
            message("user", ("context", odd)),
            message(
                "assistant", ("thought", odd), ("action", f"<function=bash>\n<parameter=command>echo '{odd}'  # {odd}")
            ),
            message("tool", ("observation", odd)),
            message("assistant", ("action", "😀" * 6000)),
        ),
        resolved=True,
    )


def long(characters=215_000):
    """One very long line, one very long listing and one very long action."""
    listing = "".join(f"{i:6d}\t    value_{i} = compute({i})  # note {i}\n" for i in range(characters // 90))
    code = "".join(f"def f{i}(x):\n    # comment {i}\n    return x + {i}\n\n" for i in range(characters // 180))
    return Trajectory(
        "long",
        (
            message("user", ("context", "x" * (characters // 5))),
            message(
                "assistant",
                ("thought", "look"),
                ("action", "<function=bash>\n<parameter=command>cat f.py</parameter>\n</function>"),
            ),
            message("tool", ("observation", listing)),
            message(
                "assistant",
                (
                    "action",
                    f"<function=create>\n<parameter=path>a.py</parameter>\n<parameter=file_text>\n{code}</parameter>\n</function>",
                ),
            ),
        ),
        resolved=False,
    )


def small():
    """One turn whose tokens the tiny model of `tiny_tokens` knows."""
    return Trajectory(
        "small",
        (
            message("user", ("context", "Fix it.")),
            message(
                "assistant",
                ("thought", "Run."),
                ("action", "<function=bash>\n<parameter=command>ls -a 😀</parameter>\n</function>"),
            ),
        ),
        resolved=True,
    )


def tiny_tokens(text, *, sure):
    """Tokens of the action's value: `ls`, ` -`, `a`, ` ` and 😀 in two tokens, with uniform or one-sided guesses.

    The model spreads its mass evenly over n tokens, so that surprisal = entropy = ln n wherever the target is one.
    """
    offset = text.index("ls -a")
    spans = [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7), (6, 7)]
    choices = [2, 1, 1, 1, 1, 1] if sure else [2, 4, 5, 1, 3, 10]
    tokens = []
    for (start, end), n in zip(spans, choices):
        piece = text[offset + start : offset + end]
        top = [(piece, 1 / n), *((f"<{i}>", 1 / n) for i in range(1, n)), *((f"z{i}", 0.0) for i in range(10 - n))]
        tokens.append(TokenView(offset + start, offset + end, math.log(n), math.log(n), math.log(n) > 1.2424533, top))
    return tokens
