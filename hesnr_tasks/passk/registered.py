"""What lm-eval finds by name: the filter `keep_all` and the metric `passk`. Importing this registers them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.filter import Filter
from lm_eval.api.registry import get_metric, register_filter, register_metric

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.passk.estimator import pass_at_ks, powers

__all__ = ["KeepAll", "is_right", "passk"]


@register_filter("keep_all")
class KeepAll(Filter):
    """Every answer to a problem, where lm-eval's `take_first` keeps one."""

    def apply(self, resps: Iterable[Any], docs: Sequence[dict[str, Any]]) -> list[list[Any]]:
        """Lists of answers, one list a request, as they came."""
        return [list(answers) for answers in resps]


@register_metric(metric="passk", higher_is_better=True, aggregation="mean")
def passk(
    references: Sequence[Any],
    predictions: Sequence[Sequence[Any]],
    k: int | Sequence[int] | None = None,
    verifier: str = "exact_match",
    threshold: float | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Pass@k of one problem: `references` has its one target, `predictions` one list of all its answers.

    `verifier` is a metric of lm-eval that gives 1 for right and 0 for wrong (with `threshold`: at least that for
    right); other arguments are its own. For `k` see `PassKTask`; default: powers of two up to the number of answers.
    """
    answers = list(predictions[0])
    check = get_metric(verifier)
    if check is None:
        raise SettingsError(f"verifier {verifier!r} is no metric of lm-eval")
    scores = (check(references=[references[0]], predictions=[answer], **kwargs) for answer in answers)
    values = [score[verifier] if isinstance(score, dict) else score for score in scores]
    right = sum(is_right(value, verifier, threshold) for value in values)
    ks = [k] if isinstance(k, int) else list(k or powers(len(answers)))
    return {f"pass@{k}": float(v) for k, v in zip(ks, pass_at_ks([len(answers)], [right], ks)[0], strict=True)}


def is_right(value: Any, verifier: str, threshold: float | None) -> bool:
    """Whether a verifier's value means right; `SettingsError` for one between 0 and 1 without a threshold."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SettingsError(f"verifier {verifier!r} gives {value!r}, no number") from None
    if threshold is not None:
        return number >= threshold
    if number not in (0.0, 1.0):
        raise SettingsError(
            f"verifier {verifier!r} gives {number:g}, neither right (1) nor wrong (0); say from which value on an "
            'answer is right: "threshold" of passk'
        )
    return bool(number)
