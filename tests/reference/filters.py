"""Slow references for the filters: Python's own tokenizer, and white space by its definition."""

import io
import tokenize

__all__ = ["python_comments", "tokenizes", "white_space"]


def _tokens(text):
    return tokenize.generate_tokens(io.StringIO(text, newline="").readline)


def tokenizes(text):
    """Whether the standard tokenizer reads `text` to its end."""
    try:
        return all(token.type != tokenize.ERRORTOKEN for token in _tokens(text))
    except (SyntaxError, tokenize.TokenError):
        return False


def python_comments(text):
    """Spans of the comments of a text that tokenizes; a shebang is not one."""
    starts = [0]
    for line in io.StringIO(text, newline=""):
        starts.append(starts[-1] + len(line))
    results = []
    for token in _tokens(text):
        if token.type == tokenize.COMMENT and not (token.start == (1, 0) and token.string.startswith("#!")):
            start = starts[token.start[0] - 1] + token.start[1]
            results.append((start, start + len(token.string)))
    return results


def white_space(text):
    """Positions of the characters Python calls white space, one by one."""
    return {i for i, c in enumerate(text) if c.isspace()}
