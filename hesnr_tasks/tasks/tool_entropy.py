"""The lm-eval task `hesnr_tool_entropy`: where a checkpoint hesitates over what an agent does next.

The same documents, requests and score files as every other task, so each trajectory is read once whatever tasks are
named beside it; only what is made of the scores differs. What a step's entropy is: `analysis/tool_entropy.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from hesnr_tasks.analysis.tool_entropy import MEASURES, ToolEntropyItem, item_of, measure, number, stderr_of, steps_of
from hesnr_tasks.backends.base import TokenScores
from hesnr_tasks.lm_eval_compat import LoggedValue
from hesnr_tasks.metrics import Item, topk_entropy
from hesnr_tasks.stats import FEWEST_FOR_ERROR, effective_number
from hesnr_tasks.tasks.settings import ToolEntropySettings
from hesnr_tasks.tasks.task import DocumentValues, HesnrTask
from hesnr_tasks.trajectory.rendering import Rendered

__all__ = ["ToolEntropyTask"]

_NAMES = {"steps": "tool_steps", "unmeasured": "tool_steps_unmeasured", "mean": "tool_entropy"}
_PUBLIC = {_NAMES.get(name, f"tool_entropy_{name}"): name for name in MEASURES}
_WITH_ERROR = [public for public, name in _PUBLIC.items() if name not in ("steps", "unmeasured")]  # not of counts


class ToolEntropyTask(HesnrTask):
    """Entropy at the decision tokens of each action: mean, quantiles, skewness, share of high-entropy steps."""

    settings: ToolEntropySettings
    settings_type = ToolEntropySettings

    def measure(self, scores: TokenScores, rendered: Rendered) -> DocumentValues:
        """The trajectory's part in every number, then the same for its standard error."""
        counted, share = scores.selected(self._mask), self._share_scored(scores, rendered)
        rank, k, epsilon = scores.scores.rank[counted], self.settings.k, self.settings.epsilon
        entropy = topk_entropy(scores.scores.topk_logprobs[counted], k)
        decisive = (entropy > epsilon) & (rank >= 1) & (rank <= k)
        steps = steps_of(rendered, self.settings.decision_arguments)
        spans = (scores.char_start[counted], scores.char_end[counted])
        measured = measure(steps, *spans, entropy, decisive, self.settings.combine)
        item = item_of(scores.key, measured, epsilon, share.tokens_cut)
        values = {public: LoggedValue(number(name, [item]), item) for public, name in _PUBLIC.items()}
        return self._document_values(scores, values, dict.fromkeys(_WITH_ERROR, item), share)

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

    def _steps(self, items: Iterable[Any]) -> list[ToolEntropyItem]:
        """Without those of the trajectories that overflow=skip leaves out."""
        steps = [item.payload for item in items]
        return [item for item in steps if not item.tokens_cut] if self.settings.overflow == "skip" else steps

    def _sign(self, items: list[Item], included: list[Item]) -> None:
        super()._sign(items, included)
        self._config.metadata["signature"] |= {
            "decision_arguments": self.settings.decision_arguments,
            "combine": self.settings.combine,
        }
