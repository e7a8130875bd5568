"""The closed language of the miniature: one-line functions with a description, bugs in them, and repair tasks.

A file is a list of functions, two lines each: what it returns in words, and the code. A task is two files with one or
two functions that do not do what their line of words says. Every random choice comes from a `random.Random`.

Which functions may be seen in training is decided by the function alone: `bucket` hashes its parameters and its right
code. Training texts are of functions of the bucket "train" only (their wrong versions too), the tasks that models act
on are of "act" only, the expert's trajectories that are scored are of "score" only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["BUCKETS", "Bucket", "Function", "Task", "bucket", "make_function", "make_task"]

Bucket = Literal["train", "act", "score"]
BUCKETS: tuple[Bucket, ...] = ("train", "act", "score")
Expression = str | int | tuple[str, "Expression", "Expression"]

LETTERS = "abcdmnpqstxy"
NAMES = (
    "bend", "cast", "dive", "fold", "grow", "join", "kick", "lift", "melt", "nod", "push", "ring",
    "sail", "turn", "wave", "zoom",
)  # fmt: skip
FILES = ("cat.py", "dog.py", "fox.py", "hen.py", "owl.py", "pig.py")
OPERATORS = ("+", "-", "*", "//", "%", "max", "min")
PHRASES = {  # {x} and {y}: left and right operand as the code has them
    "+": ("the sum of {x} and {y}", "{x} plus {y}"),
    "-": ("the rest of {x} without {y}", "{x} minus {y}"),
    "*": ("the product of {x} and {y}", "{x} times {y}"),
    "//": ("the share of {x} by {y}", "{x} over {y}"),
    "%": ("the remainder of {x} by {y}", "{x} modulo {y}"),
    "max": ("the larger of {x} and {y}", "the maximum of {x} and {y}"),
    "min": ("the smaller of {x} and {y}", "the minimum of {x} and {y}"),
}
DIFFICULTY = (0.4, 0.4, 0.2)  # shares of functions with 1, 2 and 3 operators
TWO_BUGS = 0.25  # share of tasks
N_TESTS = 5  # per function


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language; `bug` is the wrong expression that the file has in place of the right one."""

    name: str
    parameters: tuple[str, ...]
    expression: Expression
    description: str
    bug: Expression | None = None
    tests: tuple[tuple[tuple[int, ...], int], ...] = ()

    def code(self, *, repaired: bool) -> str:
        shown = self.expression if repaired or self.bug is None else self.bug
        return f"def {self.name}({', '.join(self.parameters)}): return {write(shown)}"

    def lines(self, *, repaired: bool) -> list[str]:
        return [f"# {self.description}", self.code(repaired=repaired)]


@dataclass(frozen=True, slots=True)
class Task:
    """Files with functions of which one or two are wrong."""

    name: str
    files: dict[str, tuple[Function, ...]] = field(hash=False)

    def texts(self, *, repaired: bool = False) -> dict[str, list[str]]:
        """The lines of each file."""
        return {
            path: [line for function in functions for line in function.lines(repaired=repaired)]
            for path, functions in self.files.items()
        }

    def tests(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        """(file, function, arguments, right result) of every test."""
        return [
            (path, function.name, arguments, result)
            for path, functions in self.files.items()
            for function in functions
            for arguments, result in function.tests
        ]

    @property
    def operators(self) -> int:
        """Of the hardest function that is wrong: 1 to 3."""
        return max(count(f.expression) for functions in self.files.values() for f in functions if f.bug is not None)


def write(expression: Expression) -> str:
    """An expression as Python; nested infix operations in parentheses."""
    if not isinstance(expression, tuple):
        return str(expression)
    operator, left, right = expression
    if operator in ("max", "min"):
        return f"{operator}({write(left)}, {write(right)})"
    sides = [
        f"({write(side)})" if isinstance(side, tuple) and side[0] not in ("max", "min") else write(side)
        for side in (left, right)
    ]
    return f"{sides[0]} {operator} {sides[1]}"


def describe(expression: Expression, rng: random.Random, *, inside: bool = False) -> str:
    """An expression in words; nested operations always in the form that opens with "the"."""
    if not isinstance(expression, tuple):
        return str(expression)
    operator, left, right = expression
    nested = inside or isinstance(left, tuple) or isinstance(right, tuple)
    phrase = PHRASES[operator][0 if nested else rng.randrange(2)]
    return phrase.format(x=describe(left, rng, inside=True), y=describe(right, rng, inside=True))


def value(expression: Expression, variables: dict[str, int]) -> int:
    """What an expression of our own making is; texts of models are run by `sandbox` only."""
    if isinstance(expression, str):
        return variables[expression]
    if isinstance(expression, int):
        return expression
    operator, x, y = expression[0], value(expression[1], variables), value(expression[2], variables)
    match operator:
        case "+":
            return x + y
        case "-":
            return x - y
        case "*":
            return x * y
        case "//":
            return x // y
        case "%":
            return x % y
        case "max":
            return max(x, y)
        case _:
            return min(x, y)


def count(expression: Expression) -> int:
    return 1 + count(expression[1]) + count(expression[2]) if isinstance(expression, tuple) else 0


def bucket(parameters: Sequence[str], expression: Expression) -> Bucket:
    """Eight tenths of all functions are for training, a tenth each to act on and to score."""
    digest = hashlib.sha256(f"{', '.join(parameters)}: {write(expression)}".encode()).digest()
    return ("act", "score", *["train"] * 8)[digest[0] % 10]  # type: ignore[return-value]


def make_expression(parameters: Sequence[str], operators: int, rng: random.Random) -> Expression:
    """A random expression in which operands of // and % on the right are leaves, so that nothing divides by zero."""
    if operators == 0:
        return rng.choice(parameters) if rng.random() < 0.8 else rng.randint(2, 9)
    operator = rng.choice(OPERATORS)
    left = operators - 1 if operator in ("//", "%") else rng.randrange(operators)
    x = y = make_expression(parameters, left, rng)
    while x == y:
        y = make_expression(parameters, operators - 1 - left, rng)
    return (operator, x, y)


def wrong(expression: Expression, parameters: Sequence[str], rng: random.Random) -> Expression:
    """The expression with one bug: another operator, another variable, a constant off by one, or operands swapped."""
    if isinstance(expression, str):
        return rng.choice([p for p in parameters if p != expression])
    if isinstance(expression, int):
        return expression + rng.choice((-1, 1))
    operator, left, right = expression
    kind = rng.random()
    if kind < 0.45:
        safe = [o for o in OPERATORS if o != operator and (o not in ("//", "%") or not isinstance(right, tuple))]
        return (rng.choice(safe), left, right)
    if kind < 0.6 and operator in ("-", "//", "%") and not isinstance(left, tuple):
        return (operator, right, left)
    if rng.random() < 0.5:
        return (operator, wrong(left, parameters, rng), right)
    return (operator, left, wrong(right, parameters, rng))


def make_tests(function: Function, rng: random.Random) -> tuple[tuple[tuple[int, ...], int], ...]:
    tests = []
    for _ in range(N_TESTS):
        arguments = tuple(rng.randint(1, 9) for _ in function.parameters)
        tests.append((arguments, value(function.expression, dict(zip(function.parameters, arguments, strict=True)))))
    return tuple(tests)


def fails(function: Function) -> bool:
    """Whether a test of the function tells its bug from the right expression."""
    return function.bug is not None and any(
        value(function.bug, dict(zip(function.parameters, arguments, strict=True))) != result
        for arguments, result in function.tests
    )


def make_function(name: str, which: Bucket, rng: random.Random, *, with_bug: bool = False) -> Function:
    """A random function of a bucket, with tests, and with a bug that they show where asked for."""
    while True:
        operators = rng.choices((1, 2, 3), DIFFICULTY)[0]
        parameters = tuple(rng.sample(LETTERS, rng.choice((2, 3))))
        expression = make_expression(parameters, operators, rng)
        if bucket(parameters, expression) != which:
            continue
        bug = wrong(expression, parameters, rng) if with_bug else None
        if bug is not None and which == "train" and bucket(parameters, bug) != "train":
            continue
        function = Function(name, parameters, expression, describe(expression, rng), bug)
        function = Function(name, parameters, expression, function.description, bug, make_tests(function, rng))
        if fails(function) == with_bug:
            return function


def make_task(name: str, which: Bucket, rng: random.Random) -> Task:
    """Two files of two or three functions, one or two of them wrong."""
    paths = rng.sample(FILES, 2)
    sizes = [rng.choice((2, 3)) for _ in paths]
    places = rng.sample(range(sum(sizes)), 2 if rng.random() < TWO_BUGS else 1)
    names = rng.sample(NAMES, sum(sizes))
    functions = [make_function(n, which, rng, with_bug=i in places) for i, n in enumerate(names)]
    return Task(name, {paths[0]: tuple(functions[: sizes[0]]), paths[1]: tuple(functions[sizes[0] :])})
