"""Running chat templates, which come with a checkpoint and are not trusted: within limits, in a sandbox of our own."""

from __future__ import annotations

import ctypes
import datetime
import functools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hesnr_tasks.errors import DataError

_plain_json = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` makes an encoder each time
DATE = datetime.datetime(2025, 1, 1)  # in the place of today's, which some templates print: numbers must not change

MAX_SECONDS = 60.0  # of one run of a template: real ones take milliseconds
MAX_BYTES = 4 << 30  # that the process may grow by while one runs
MAX_CHARACTERS = 1 << 26  # that a template may write: some 16 million tokens
USE_OTHER_RENDERING = "Use --metadata render=chatml or render=transcript."


class TemplateLimitError(DataError):
    """A template takes too long, writes too much or fills the memory; it is not tried again."""


class _Stopped(BaseException):
    """Raised by the watchdog in the thread that runs a template; no handler of templates or libraries catches it."""


class _TemplateRun(NamedTuple):
    thread: int
    start: float  # of the monotonic clock, seconds
    cpu: float  # processor time of the thread at the start, seconds
    peak: int  # memory of the process at the start, bytes

    def excess(self) -> str:
        """What it takes too much of, if anything."""
        if time.monotonic() - self.start > MAX_SECONDS:
            return f"it takes more than {MAX_SECONDS:.0f} seconds, and may loop for ever"
        if _peak_memory() - self.peak > MAX_BYTES and _processor_time(self.thread) - self.cpu > _UNWATCHED_SECONDS:
            return f"it needs more than {MAX_BYTES / 2**30:.0f} GiB of memory"
        return ""


# of processor time, in which a template cannot fill much memory: where the process grows meanwhile, another thread
# loads a model. Real templates take milliseconds of it, however long they wait for that thread.
_UNWATCHED_SECONDS = 0.5
_WATCH_SECONDS = 0.25  # from one look at a run to the next


def _processor_time(thread: int) -> float:
    """What a thread has used of it so far, seconds; all time where that is not known."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    except (AttributeError, OSError):  # Windows and macOS
        return time.monotonic()


def _peak_memory() -> int:
    """The most that this process has had in memory so far, bytes; 0 where that is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _TemplateRunner:
    """Runs templates, one at a time, within the limits above; a thread watches as long as there are runs.

    No limit of the operating system is set: it would hold for the threads that load a model meanwhile as well.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """No template runs: a process that another thread forks meanwhile has neither the locks nor the watcher."""
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._current: _TemplateRun | None = None
        self._watcher: threading.Thread | None = None

    def run(self, template: Callable[[], Any]) -> Any:
        """What `template` returns.

        Raises:
            TemplateLimitError: it goes beyond a limit.
        """
        thread = threading.get_ident()
        with self._turn:
            run = _TemplateRun(thread, time.monotonic(), _processor_time(thread), _peak_memory())
            try:
                try:
                    self._current = run
                    if self._watcher is None or not self._watcher.is_alive():
                        self._watcher = threading.Thread(target=self._watch, name="hesnr-templates", daemon=True)
                        self._watcher.start()
                    text = template()
                finally:
                    with self._lock:
                        self._current = None
                    for _ in range(2):  # an exception that is on its way arrives here at the latest
                        pass
            except _Stopped:
                with self._lock:  # it may have come just before that was done
                    self._current = None
                raise TemplateLimitError(run.excess()) from None
            except MemoryError:
                raise TemplateLimitError("it needs more memory than there is") from None
            if excess := run.excess():  # of a single step, which nothing ends
                raise TemplateLimitError(excess)
        if isinstance(text, str) and len(text) > MAX_CHARACTERS:
            raise TemplateLimitError(f"it writes {len(text):,} characters")
        return text

    def _watch(self) -> None:
        idle = 0
        while idle < 20:
            time.sleep(_WATCH_SECONDS)
            with self._lock:
                idle = 0 if self._current else idle + 1
                if self._current and self._current.excess():
                    thread, exception = ctypes.c_ulong(self._current.thread), ctypes.py_object(_Stopped)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, exception)


run_template = _TemplateRunner().run

_TEMPLATE_TOKENS = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])


@lru_cache(maxsize=16)
def has_power(source: str) -> bool:
    """Whether a template computes a power: no limit ends one like `9 ** 9 ** 9`, which is a single step of Python."""
    before = ""
    try:
        tokens = list(_TEMPLATE_TOKENS.lex(source)) if "**" in source else []
    except jinja2.TemplateError:  # running it says why
        return False
    for _, kind, text in tokens:
        if kind == "operator" and text == "**" and before not in ("(", ","):  # those pass arguments
            return True
        if kind != "whitespace":
            before = text
    return False


# --- the sandbox ------------------------------------------------------------------------------------------------------


class _BoundedCode(CodeGenerator):
    """Jinja's compiler, with the operator `~` and what makes lists as methods of the sandbox.

    Keys of mappings, which templates read most, are read without a call, exactly where the sandbox would read them.
    """

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        is_key = isinstance(node.node, nodes.Name) and node.attr not in _OF_DICT
        self._read_key(node.node, node.attr if is_key else None, frame)
        super().visit_Getattr(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        key = node.arg.value if isinstance(node.node, nodes.Name) and isinstance(node.arg, nodes.Const) else None
        self._read_key(node.node, key, frame)
        super().visit_Getitem(node, frame)
        self.write(")")

    def _read_key(self, mapping: nodes.Expr, key: Any, frame: Frame) -> None:
        """Begin an expression that reads `key` where it is a text and is there; what is written next does it else."""
        self.write("(")
        if type(key) is str:
            for code in (f"[{key!r}] if type(", f") is dict and {key!r} in ", " else "):
                self.visit(mapping, frame)
                self.write(code)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.bounded(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.bounded(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        is_value = node.ctx == "load"  # not where names are assigned
        self.write("environment.bounded(" if is_value else "")
        super().visit_Tuple(node, frame)
        self.write(")" if is_value else "")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        markup = frame.eval_ctx.autoescape or frame.eval_ctx.volatile
        self.write(f"environment.concatenated({'markup_join' if markup else 'str_join'}, (")
        for value in node.nodes:
            self.visit(value, frame)
            self.write(", ")
        self.write("))")


class _TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox. What templates read and call most and what is always safe needs none of its slow checks.

    A single step that would make a giant text is refused before it is taken; nothing else could end it. Texts are made
    by operators, by printing, by what joins what was printed, by methods and by filters.
    """

    intercepted_binops = frozenset("+*%")
    code_generator_class = _BoundedCode

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_printed, **options)

    @staticmethod
    def concat(texts: Iterable[str]) -> str:
        """What Jinja makes of all that is printed in a template, a macro or a block."""
        texts = list(texts)
        _refuse_size(sum(map(len, texts)), MAX_CHARACTERS)
        return "".join(texts)

    @staticmethod
    def bounded(value: Any) -> Any:
        """A list or mapping that a template makes: comparing two that hold themselves very often would never end."""
        _size(value)
        return value

    @staticmethod
    def concatenated(join: Callable[[Sequence[Any]], str], values: Sequence[Any]) -> str:
        """The operator `~`."""
        _refuse_size(sum([len(value) if type(value) is str else _size(value) for value in values]))
        return join(values)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if type(left) is str and type(right) is str and len(left) + len(right) <= _LARGEST:  # most often
                return left + right
            if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
                _refuse_size(len(left) + len(right))
            return left + right
        if operator == "%":
            if isinstance(left, str):
                _refuse_giants("format", left, (right,))
        elif isinstance(left, int) and isinstance(right, int):
            _refuse_size(left.bit_length() + right.bit_length())
        else:
            for repeated, count in ((left, right), (right, left)):
                if isinstance(count, int) and isinstance(repeated, (str, list, tuple)):
                    _refuse_size(len(repeated) * count)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps `format`
        if type(method) is BuiltinMethodType and type(method.__self__) in _SAFE:
            if method.__name__ in _GROWING:
                if method.__name__ == "join" and args:
                    args = (_listed(args[0], method.__self__), *args[1:])
                _refuse_giants(method.__name__, method.__self__, (*args, *kwargs.values()))
            elif method.__name__ in _SAFE[type(method.__self__)]:
                for name in ("_loop_vars", "_block_vars"):  # Jinja's own, of every call
                    kwargs.pop(name, None)
                return __obj(*args, **kwargs)
        if type(__obj) is Macro or __obj is _Namespace:
            for name in ("_loop_vars", "_block_vars"):
                kwargs.pop(name, None)
            first = () if __obj is _Namespace else (__context.eval_ctx,)
            return __obj(*first, *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is _Namespace and attribute in (values := object.__getattribute__(obj, _VALUES)):
            return values[attribute]
        if attribute in _SAFE.get(kind, ()):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


_VALUES = "_Namespace__attrs"  # where Jinja's namespace holds them: reading them there is several times as fast


class _Namespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # as Jinja's: any keyword is a name, `self` too
        values = dict(*args[1:], **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


_WIDEST = 10_000  # characters of a width or an indent, items of a batch
_WIDE = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "batch", "slice"))
_GROWING = _WIDE | {"format", "format_map", "join", "replace", "translate"}  # may write much more than they get
_PRINTING = frozenset((  # filters that write any value as a text
    "capitalize", "e", "escape", "forceescape", "lower", "pprint", "safe", "string", "striptags", "sum", "title",
    "trim", "truncate", "upper", "urlencode", "urlize", "wordcount", "xmlattr",
))  # fmt: skip
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})|\{[^{}]*(?:\{|\d{5})")
_LARGEST = 1 << 24  # characters, or items, that a single step may make of a value: 4 million tokens
_CONTAINERS: tuple[type[Iterable[Any]], ...] = (
    list,
    tuple,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


def _size(value: Any, indent: int = 1) -> int:
    """Characters of a value as a text, or somewhat more; a list that holds one list many times has them as often.

    Raises:
        TemplateLimitError: they are too many.
    """
    if isinstance(value, str):
        return len(value)
    size, rest = 0, [(value, 1)]
    while rest:
        item, depth = rest.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            for part in (*item, *item.values()):
                if type(part) is str:  # most often
                    size += len(part) + 4 + indent * (depth + 1)
                else:
                    rest.append((part, depth + 1))
        elif isinstance(item, _CONTAINERS):
            rest.extend((part, depth + 1) for part in item)
        elif isinstance(item, Namespace):
            rest.append((object.__getattribute__(item, _VALUES), depth + 1))
        elif isinstance(item, int) and item.bit_length() > 64:
            size += item.bit_length() // 3
        size += 4 + indent * depth
        if size > _LARGEST or len(rest) > _LARGEST:
            _refuse_size(_LARGEST + 1)
    return size


def _printed(value: Any) -> Any:
    """A value that a template prints."""
    if not isinstance(value, str):
        _size(value)
    return value


def _listed(items: Any, separator: Any) -> Any:
    """The items that a separator joins, which may come one by one."""
    if isinstance(items, str):
        return items
    size, parts = 0, []
    for item in items:
        size += _size(item) + _size(separator)
        _refuse_size(size)
        parts.append(item)
    return parts


def _refuse_giants(name: str, value: Any, arguments: Sequence[Any]) -> None:
    """Refuse a call of the method or filter `name` on `value` that would write a giant text."""
    if name == "join":
        items, separator = (arguments[0], value) if isinstance(value, str) else (value, "".join(map(str, arguments)))
        _refuse_size(len(items) * (len(separator) + 1) if isinstance(items, str) else 0)
    elif name == "sum":
        if not all(isinstance(argument, (int, float, str)) for argument in arguments):  # it would add lists
            _refuse_size(_LARGEST + 1)
    elif name == "replace":
        old, new = map(str, arguments[:2])
        _refuse_size(_size(value) + str(value).count(old) * len(new))
    elif name.startswith("format"):
        text = str(value)
        sizes = [_size(argument) for argument in arguments]
        _refuse_size(len(text) + (text.count("%") + text.count("{")) * max(sizes, default=0))
        _refuse_size(_LARGEST + 1 if _WIDE_FORMAT.search(text) else 0)
    elif name in _PRINTING:
        _size(value)
    elif name not in _WIDE or any(isinstance(argument, int) and argument > _WIDEST for argument in arguments):
        _refuse_size(_LARGEST + 1)
    elif isinstance(value, str):  # a width or a text for each of its tabs, lines or, at worst, characters
        times = {"expandtabs": value.count("\t"), "indent": value.count("\n") + 1, "wordwrap": len(value)}.get(name, 1)
        written = [argument for argument in arguments if name != "wordwrap" or isinstance(argument, str)]  # no width
        widths = [argument if isinstance(argument, int) else _size(argument) for argument in written]
        _refuse_size(len(value) + times * max(widths, default=8))


def _refuse_size(size: int, largest: int = _LARGEST) -> None:
    if size > largest:
        raise TemplateLimitError("it makes a giant text in a single step")


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name`, which refuses to write a giant text."""
    extra = hasattr(function, "jinja_pass_arg")  # the first argument is Jinja's
    is_printing = name in _PRINTING - {"sum"}

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if is_printing and type(args[extra]) is str:  # most often; no longer than the text is
            return function(*args, **kwargs)
        if name == "join" and "attribute" not in kwargs and len(args) <= extra + 2:
            separator = args[extra + 1] if len(args) > extra + 1 else kwargs.get("d", "")
            args = (*args[:extra], _listed(args[extra], separator), *args[extra + 1 :])
        _refuse_giants(name, args[extra], (*args[extra + 1 :], *kwargs.values()))
        return function(*args, **kwargs)

    return bounded


_OF_DICT = frozenset(dir(dict))
_SAFE: dict[type, frozenset[str]] = {
    str: frozenset(name for name in dir(str) if name[0] != "_" and not name.startswith("format")),
    dict: frozenset(("get", "items", "keys", "values")),
    LoopContext: frozenset(name for name in dir(LoopContext) if name[0] != "_"),
}


def _raise(message: str) -> None:
    raise DataError(f"it raises {message[:300]!r}")


class RandomChoiceError(DataError):
    """A template makes a random choice."""


class FreeDateError(DataError):
    """A template prints today's date, and nothing can fix it."""


def _refuse_random(*_: Any, **__: Any) -> None:
    raise RandomChoiceError("it makes random choices")


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson` as Transformers has it."""
    _size(value, indent if isinstance(indent, int) else len(indent or " "))
    if not (ensure_ascii or indent or separators or sort_keys):
        return _plain_json(value)
    if indent is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
    marks = None if separators is None else tuple(separators)
    return _indented_json(json.dumps(value), ensure_ascii, indent, marks, sort_keys)


@lru_cache(maxsize=64)
def _indented_json(compact: str, ensure_ascii: bool, indent: Any, separators: Any, sort_keys: bool) -> str:
    """JSON with line breaks, which takes Python's slow encoder: the schemas of tools are the same each time."""
    value = json.loads(compact)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime(date: datetime.datetime) -> Callable[[str], str]:
    """The function `strftime_now` of templates, always of this date."""

    def now(pattern: str) -> str:
        wide = len(pattern) > _WIDEST or _WIDE_FORMAT.search(pattern)
        _refuse_size(_LARGEST + 1 if wide else 0)
        return date.strftime(pattern)

    return now


_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")  # Transformers' blocks: their content, as it is


@lru_cache(maxsize=16)
def compiled(source: str) -> jinja2.Template:
    """A template with what Transformers gives it; a fixed date, nothing random."""
    environment = _TemplateSandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in (_GROWING | _PRINTING) & environment.filters.keys():
        environment.filters[name] = _bounded(name, environment.filters[name])
    environment.filters["tojson"] = _json
    environment.filters["random"] = _refuse_random
    environment.globals.update(
        namespace=_Namespace,
        dict=lambda *args, **kwargs: environment.bounded(dict(*args, **kwargs)),
        lipsum=_refuse_random,
        raise_exception=_raise,
        strftime_now=strftime(DATE),
        generation=lambda caller: caller(),
    )
    blocks = _GENERATION.sub(lambda m: f"{{%{m[1]} {'endcall' if m[2] else 'call generation()'} {m[3]}%}}", source)
    return environment.from_string(blocks)
