"""Everything that lm-eval forces on us, for its versions 0.4.13 and 0.5.0.dev1, each with the reason."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble
from lm_eval.utils import simple_parse_args_string

from hesnr_tasks.errors import HesnrError

# --- the running evaluation -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunningEvaluation:
    """How lm-eval was called.

    Args:
        model_args: arguments of the model; None: not known (a model object, or no evaluation is running).
        output_path: where lm-eval saves results (`--output_path`); None: nowhere.
        is_command: whether it is the `lm_eval` command that runs, not somebody's program.
        lm: lm-eval's model, once it is made.
    """

    model_args: Mapping[str, Any] | None = None
    output_path: Path | None = None
    is_command: bool = False
    lm: Any = None

    def is_model_argument(self, key: str, value: Any) -> bool:
        """Whether the entry `key: value` of a task's metadata is an argument of the model.

        A constructor with `**kwargs` takes any name, so where the arguments are known only they count; otherwise the
        named parameters of the constructors of all of lm-eval's models that are imported do.
        """
        if self.model_args is not None:
            return key in self.model_args and str(self.model_args[key]) == str(value)
        classes, names = [LM], set[str]()
        while classes:
            cls = classes.pop()
            classes += cls.__subclasses__()
            parameters = inspect.signature(cls.__init__).parameters.values()
            names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        return key in names - {"self", "seed"}  # a seed in the metadata is meant for the bootstrap


def running_evaluation() -> RunningEvaluation:
    """The evaluation that is running in this thread, read from the frame of `simple_evaluate`.

    lm-eval hands a task one mapping, `YAML metadata | model_args | metadata`, without a record of which key came from
    where, so a misspelt setting and an argument of the model look the same; and it hands the output path to no task.
    It builds the model before it imports any task, so no hook of ours can be in place earlier, and keeps neither value
    in the model, the task manager or a global. They are together only in the running `simple_evaluate`.
    """
    caller = _frame("lm_eval.evaluator", "simple_evaluate")
    is_command = _frame("lm_eval._cli") is not None
    if caller is None:
        return RunningEvaluation(is_command=is_command)
    arguments = caller.f_locals
    model_args = arguments.get("model_args")
    if isinstance(model_args, str):
        model_args = simple_parse_args_string(model_args)
    if not isinstance(arguments.get("model"), str):  # its arguments are only copied into the metadata
        model_args = model_args or None
    output_path = getattr(arguments.get("evaluation_tracker"), "output_path", None)
    return RunningEvaluation(
        None if model_args is None else dict(model_args),
        Path(output_path) if output_path else None,
        is_command,
        arguments.get("lm"),
    )


def _frame(module: str, function: str | None = None) -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if f"{name}.".startswith(f"{module}.") and function in (None, frame.f_code.co_name):
            return frame
        frame = frame.f_back
    return None


# --- the command's screen ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exit_on_command_line() -> Iterator[None]:
    """Let the `lm_eval` command end with the message of a `HesnrError` alone; in programs the error is raised as it is.

    The command catches no errors, so users would read a traceback through lm-eval.
    """
    try:
        yield
    except HesnrError as error:
        if not running_evaluation().is_command:
            raise
        raise SystemExit(f"\nhesnr-tasks: {error}") from error


_last_lines: dict[str, bool] = {}  # whether each is a warning


def print_at_exit(line: str, *, warning: bool = True) -> None:
    """Print `line` to stderr when the `lm_eval` command ends, once: before its table it would be overlooked.

    Warnings come last.
    """
    if line not in _last_lines and running_evaluation().is_command:
        if not _last_lines:
            atexit.register(_print_last_lines)
        _last_lines[line] = warning


def _print_last_lines() -> None:
    sys.stdout.flush()
    for line in sorted(_last_lines, key=lambda line: _last_lines[line]):
        print(f"hesnr-tasks: {line}", file=sys.stderr)


def attach_lm_eval_handlers(logger: logging.Logger) -> None:
    """Log where and as loudly as lm-eval does: its handler is on its own logger, not on the root."""
    lm_eval_logger = logging.getLogger("lm_eval")
    logger.setLevel(lm_eval_logger.getEffectiveLevel())
    for handler in lm_eval_logger.handlers:
        if handler not in logger.handlers:
            logger.addHandler(handler)


# --- requests ---------------------------------------------------------------------------------------------------------


def attach_request_type(request_type: str, answer: Callable[..., list[Any]]) -> None:
    """Let every model answer requests of a new type: `evaluate` calls `getattr(lm, request_type)(requests)`.

    Its models come from lm-eval's registry by name, so a subclass of each cannot be put in their place.
    """
    setattr(LM, request_type, answer)


class OpaqueInstance(Instance):
    """An `Instance` whose text stays out of the sample log and of cache keys: `args` is what lm-eval writes there.

    Its arguments are the key of a text, the task, and the number of the document: there can be tens of thousands.
    """

    @property
    def args(self) -> tuple[Any, ...]:
        """What identifies the request, in a few bytes."""
        key, task, _ = self.arguments
        return tuple(task.identify(key))


def new_instance(
    task: str, request_type: str, doc: dict[str, Any], arguments: tuple[Any, ...], **named: Any
) -> OpaqueInstance:
    """An instance with the `named` arguments of `construct_requests`: 0.4 names it by a tuple, 0.5 by task and id."""
    if "doc_id" in named:
        named["task_name"] = task
    return OpaqueInstance(request_type=request_type, doc=doc, arguments=arguments, idx=0, **named)


class LoggedValue(float):
    """One document's value of a metric, with what the aggregation over all documents needs.

    What `process_results` returns is at once a row of the sample log (`--log_samples`), a value in lm-eval's loggers,
    and the input of the aggregation, gathered from all processes: for the first two it must be a number.
    """

    __slots__ = ("payload",)
    payload: Any

    def __new__(cls, value: float, payload: Any) -> LoggedValue:
        """The number, carrying `payload`."""
        self = super().__new__(cls, value)
        self.payload = payload
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return LoggedValue, (float(self), self.payload)


# --- tasks ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def our_tasks_included(folder: str, alone: bool) -> Iterator[None]:
    """Let the `lm_eval` command have the tasks of `folder` beside those of its one --include_path.

    `alone`: and none of its own, thousands of YAML files that it parses at every start, which takes half as long as a
    short run. It has no option against that; the package's own `TaskManager` does.
    """
    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager

    def manager(*args: Any, include_path: Any = None, **options: Any) -> Any:
        theirs = include_path if isinstance(include_path, (list, tuple)) else [include_path]
        paths = [folder, *(str(path) for path in theirs if path and str(path) != folder)]
        defaults = {"include_defaults": False} if alone else {}  # lm-eval 0.5 passes one itself
        return whole(*args, include_path=paths, **options | defaults)

    lm_eval.tasks.TaskManager = manager
    try:
        yield
    finally:
        lm_eval.tasks.TaskManager = whole


def task_config(config: Mapping[str, Any], request_type: str) -> TaskConfig:
    """The configuration of a task from its YAML mapping; `TaskConfig` refuses our own keys (`class`, `fixed`)."""
    names = {field.name for field in fields(TaskConfig)}
    known_keys = {name: value for name, value in config.items() if name in names}
    metadata = dict(config.get("metadata") or {})
    return TaskConfig(**{**known_keys, "output_type": request_type, "num_fewshot": 0, "metadata": metadata})


def unchanged_responses() -> dict[str, list[Any]]:
    """The attribute that makes a task take its one answer as it is; without it lm-eval computes no metric at all.

    0.4 reads `_filters`, 0.5 `_scorers`; `Task.__init__` would make them, but wants a data set.
    """
    try:
        from lm_eval.scorers import Scorer  # 0.5
    except ImportError:
        return {"_filters": [build_filter_ensemble("none", [["take_first", None]])]}
    step = {"function": "take_first"}
    return {"_scorers": [Scorer.from_dict({"name": "none", "filter": [step], "metric_list": []})]}
