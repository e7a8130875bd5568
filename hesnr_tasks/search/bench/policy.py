"""A decision graph as a policy of a search and as a model of mini-swe-agent: no network, no model, no cost.

It is stateless but for the number of draws it made at each node: where it stands is read from the commands in the
messages. Draws are seeded by what they mean (seed, agent, path, number of the draw), so forks and repetitions agree.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from hesnr_tasks.search.bench.graph import Edge, Graph
from hesnr_tasks.search.judge import semantic_seed
from hesnr_tasks.search.types import Draw, Message, Usage

__all__ = ["ScriptedPolicy", "commands_of", "draw", "prompt_usage"]


def draw(graph: Graph, path: Sequence[str], number: int, seed: object) -> Edge:
    """The edge that the draw `number` at `path` takes."""
    edges = graph.edges(path)
    at = random.Random(semantic_seed(seed, graph.name, "/".join(path), number)).random()
    ends = itertools.accumulate(edge.probability for edge in edges)
    return next((edge for edge, end in zip(edges, ends, strict=True) if at < end), edges[-1])


def prompt_usage(graph: Graph, path: tuple[str, ...], again: bool) -> Usage:
    """Prompt tokens of a call at `path`; cached is what the call before had, or all of it if that was the same."""
    tokens = graph.tokens(path)
    return Usage(tokens, tokens if again else graph.tokens(path[:-1]) if path else 0, 0)


def commands_of(messages: Sequence[Message]) -> list[str]:
    """Commands of the assistant's actions, in order."""
    actions = (one for message in messages for one in (message.get("extra") or {}).get("actions") or ())
    return [one["command"] for one in actions]


class ScriptedPolicy:
    """`sample` for searches; `query` and the rest are mini-swe-agent's Model protocol."""

    def __init__(self, graph: Graph, seed: object = 0) -> None:
        self.graph, self.seed = graph, seed
        self.config = SimpleNamespace(model_name=f"scripted-{graph.name}")
        self._drawn: Counter[tuple[str, ...]] = Counter()

    def sample(self, messages: Sequence[Message], n: int) -> list[Draw]:
        """`n` draws; the prompt is in the first one's usage."""
        path = self.graph.walk(commands_of(messages))
        shared = prompt_usage(self.graph, path, again=self._drawn[path] > 0)
        draws = []
        for at in range(n):
            edge = draw(self.graph, path, self._drawn[path] + at, self.seed)
            draws.append(self._draw(path, edge, (shared if at == 0 else Usage())._replace(output=edge.output)))
        self._drawn[path] += n
        return draws

    def _draw(self, path: tuple[str, ...], edge: Edge, usage: Usage) -> Draw:
        odds = {one.label: math.log(one.probability) for one in self.graph.edges(path)}
        message = _message(edge, odds, usage)
        return Draw(message, edge.command, decision=(odds,), usage=usage)

    def query(self, messages: list[Message], **kwargs: Any) -> Message:
        """One draw, as mini-swe-agent asks."""
        return self.sample(messages, 1)[0].message

    def format_message(self, **kwargs: Any) -> Message:
        """As given."""
        return kwargs

    def format_observation_messages(
        self, message: Message, outputs: list[dict[str, Any]], template_vars: dict[str, Any] | None = None
    ) -> list[Message]:
        """One user message for each output."""
        shown = [f"<returncode>{one['returncode']}</returncode>\n<output>\n{one['output']}</output>" for one in outputs]
        return [{"role": "user", "content": text} for text in shown]

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        """Name and skill."""
        return dict(vars(self.config))

    def serialize(self) -> dict[str, Any]:
        """For trajectory files."""
        about = {**vars(self.config), "seed": str(self.seed)}
        return {"info": {"config": {"model": about, "model_type": f"{__name__}.{type(self).__name__}"}}}


def _message(edge: Edge, odds: dict[str, float], usage: Usage) -> Message:
    """With log-probabilities as a chat completion has them: one decision token, then tokens that are certain."""
    top = [{"token": label, "logprob": logprob} for label, logprob in odds.items()]
    certain = {"token": " …", "logprob": 0.0, "top_logprobs": [{"token": " …", "logprob": 0.0}]}
    content = [{"token": edge.label, "logprob": odds[edge.label], "top_logprobs": top}, *[certain] * 3]
    said = f"THOUGHT: next, {edge.label}."
    response = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "logprobs": {"content": content}}],
        "usage": {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.output,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
        },
    }
    actions = [{"command": edge.command}]
    extra = {"actions": actions, "cost": 0.0, "timestamp": 0.0, "response": response}
    return {"role": "assistant", "content": said, "extra": extra}
