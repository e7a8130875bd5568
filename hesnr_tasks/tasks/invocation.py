"""How lm-eval was called: which keys of a task's metadata are arguments of the model, and what to print last.

lm-eval 0.4.13 and 0.5 hand a task one mapping, `YAML metadata | model_args | metadata` (`EvaluatorConfig` for the
command line, `simple_evaluate` without a task manager), and keep no record of which key came from where. The two
mappings are still apart in the running `simple_evaluate`, so its frame is read; nothing of lm-eval is patched.
"""

from __future__ import annotations

import atexit
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["ModelArguments", "model_arguments", "print_at_exit"]

_EVALUATOR, _COMMAND_LINE = "lm_eval.evaluator", "lm_eval._cli"


class ModelArguments:
    """The arguments of the model that is evaluated.

    Args:
        given: what `simple_evaluate` was given as `model_args`; None: not known (a model object, or no evaluation yet).
        parameters: names of the parameters of the constructors of lm-eval's models.
    """

    def __init__(self, given: Mapping[str, Any] | None = None, parameters: frozenset[str] = frozenset()) -> None:
        self.given, self.parameters = given, parameters

    def include(self, key: str, value: Any) -> bool:
        """Whether the entry `key: value` of a task's metadata is the model's.

        A constructor with `**kwargs` takes any name, so where the arguments are known only they count; otherwise the
        constructors' named parameters do.
        """
        if self.given is None:
            return key in self.parameters
        return key in self.given and str(self.given[key]) == str(value)


def model_arguments() -> ModelArguments:
    """The model arguments of the `simple_evaluate` that is building tasks right now."""
    frame = next(_frames(_EVALUATOR, "simple_evaluate"), None)
    if frame is None:
        return ModelArguments(None, _parameters())
    given = frame.f_locals.get("model_args")
    if isinstance(given, str):
        from lm_eval.utils import simple_parse_args_string

        given = simple_parse_args_string(given)
    # with a model object, arguments beside it are only copied into the metadata
    known = given if isinstance(frame.f_locals.get("model"), str) else given or None
    return ModelArguments(known if known is None else dict(known), _parameters())


def print_at_exit(line: str) -> None:
    """Print `line` to stderr when the `lm_eval` command ends, after its table; once, and only on the command line."""
    if line not in _last_lines and next(_frames(_COMMAND_LINE, ""), None) is not None:
        if not _last_lines:
            atexit.register(_print_last_lines)
        _last_lines.append(line)


_last_lines: list[str] = []


def _print_last_lines() -> None:
    sys.stdout.flush()
    for line in _last_lines:
        print(f"hesnr-tasks: {line}", file=sys.stderr)


def _frames(module: str, function: str) -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if (name == module or name.startswith(f"{module}.")) and function in ("", frame.f_code.co_name):
            yield frame
        frame = frame.f_back


def _parameters() -> frozenset[str]:
    """Named parameters of the constructors of all of lm-eval's model classes that are imported."""
    from lm_eval.api.model import LM

    classes, names = [LM], set()
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        parameters = inspect.signature(cls.__init__).parameters.values()
        names |= {one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
    return frozenset(names - {"self", "seed"})  # a seed in the metadata is meant for the bootstrap
