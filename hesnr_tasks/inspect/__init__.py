"""`hesnr inspect`: see what was read and what counts, in the terminal or as one self-contained HTML page."""

from hesnr_tasks.inspect.command import add_arguments, run

__all__ = ["add_arguments", "run"]
