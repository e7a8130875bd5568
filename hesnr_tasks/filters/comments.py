"""The filter `comments`: code comments, found by lexing each piece of the action in its own language.

Comments are what the language's own lexer throws away (documentation comments such as `/** … */` and `///` included),
so Python docstrings, which are string expressions, stay, and `# noqa` or `// eslint-disable` go. Shebang lines,
which choose the interpreter, and preprocessor lines stay.
"""

from __future__ import annotations

from hesnr_tasks.actions.views import CharSpan
from hesnr_tasks.filters.grammars import comments_of
from hesnr_tasks.filters.regions import regions

__all__ = ["comments"]


def comments(text: str) -> list[CharSpan]:
    """Spans of the comments in one action's text; line ends are not part of them. Never raises."""
    return [
        span for region in regions(text) for span in region.view.back(comments_of(region.view.text, region.language))
    ]
