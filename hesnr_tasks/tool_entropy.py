"""The lm-eval task `hesnr_tool_entropy`: where a checkpoint hesitates over what an agent does next.

The same documents, requests and score files as every other task, so each trajectory is read once whatever tasks are
named beside it; only what is made of the scores differs. What a step's entropy is: `search/profile_steps.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance

from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.metrics import topk_entropy
from hesnr_tasks.rendering import Rendered
from hesnr_tasks.results import Item
from hesnr_tasks.scoring.types import TokenScores
from hesnr_tasks.search.entropy import COMBINE
from hesnr_tasks.search.profile_measures import MEASURES, Part, number, part_of, stderr_of
from hesnr_tasks.search.profile_steps import ARGUMENTS, measured, steps_of
from hesnr_tasks.task import HesnrTask

__all__ = ["ToolEntropyTask"]

_OWN = ("decision_arguments", "combine")
_NAMES = {"steps": "tool_steps", "unmeasured": "tool_steps_unmeasured", "mean": "tool_entropy"}
_PUBLIC = {_NAMES.get(name, f"tool_entropy_{name}"): name for name in MEASURES}
_NEEDS_VALUES = ("p50", "p90", "p99", "skewness")


class ToolEntropyTask(HesnrTask):
    """Entropy at the decision tokens of each action: mean, quantiles, skewness, share of high-entropy steps.

    Two settings of its own: `decision_arguments` (how many words after the verb decide too) and `combine` (how the
    entropies of their tokens become one: max, mean, first, sum). The threshold is `epsilon`.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(config)
        given = self._config.metadata
        _refuse_typos(given)
        self._arguments = _natural("decision_arguments", given.get("decision_arguments", ARGUMENTS))
        self._how = str(given.get("combine", COMBINE[0]))
        if self._how not in COMBINE:
            raise SettingsError(
                f"combine is {self._how!r}; it must be one of {', '.join(COMBINE)}.{nearest(self._how, COMBINE)}"
            )
        self._texts: dict[str, Rendered] = {}

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Instance:
        """As every task; the text is remembered for its steps."""
        instance = super().construct_requests(doc, ctx, **kwargs)
        request = instance.arguments[1]
        self._texts[request.key] = request.rendered
        return instance

    def process_results(self, doc: dict[str, Any], results: list[TokenScores]) -> dict[str, Any]:
        """The trajectory's part in every number, then the same for its standard error."""
        found = results[0]
        self._run = found.run
        cut = int(((found.labels_cut & self._mask) != 0).sum())
        if cut and self.settings.overflow == "skip":
            return {}
        part = self._part(found, cut)
        if not part.steps:
            self._empty.append(doc["id"])
        slim = part._replace(values=())
        items = {public: part if name in _NEEDS_VALUES else slim for public, name in _PUBLIC.items()}
        return items | {f"{public}_stderr": item for public, item in items.items()}

    def _part(self, found: TokenScores, cut: int) -> Part:
        counted = found.where(self._mask)
        rank, k, epsilon = found.scores.rank[counted], self.settings.k, self.settings.epsilon
        entropy = topk_entropy(found.scores.topk_logprobs[counted], k)
        decides = (entropy > epsilon) & (rank >= 1) & (rank <= k)
        steps = steps_of(self._texts[found.key], self._arguments)
        start, end = found.char_start[counted], found.char_end[counted]
        return part_of(found.key, measured(steps, start, end, entropy, decides, self._how), epsilon, cut)

    def aggregation(self) -> dict[str, Callable[[Iterable[Any]], Any]]:
        """Pooled over steps; errors from the cluster bootstrap over trajectories."""
        values = {public: partial(self._pooled, name) for public, name in _PUBLIC.items()}
        return {**values, **{f"{public}_stderr": partial(self._spread, name) for public, name in _PUBLIC.items()}}

    def higher_is_better(self) -> dict[str, bool]:
        """None of these numbers has a better end."""
        return {}

    def _pooled(self, name: str, items: Iterable[Any]) -> float:
        parts = [Part(*item) for item in items]
        if name == MEASURES[0]:
            self._sign([Item(part.key, part.total, part.steps, part.cut) for part in parts])
            self._config.metadata["signature"] |= {"decision_arguments": self._arguments, "combine": self._how}
        return number(name, parts)

    def _spread(self, name: str, items: Iterable[Any]) -> float | str:
        parts = [Part(*item) for item in items]
        if len(parts) < 2:
            return "N/A"  # lm-eval prints it
        return stderr_of(name, parts, self.settings.resamples, self.settings.bootstrap_seed)


def _refuse_typos(metadata: Mapping[str, Any]) -> None:
    for key in metadata:
        hint = nearest(key, _OWN) if key not in _OWN else ""
        if hint and key[0] in "dc" and len(key) > 5:
            raise SettingsError(f"unknown setting {key!r} in --metadata.{hint}")


def _natural(name: str, value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdigit():
        raise SettingsError(f"{name} must be a whole number of at least 0, not {value!r}")
    return int(value)
