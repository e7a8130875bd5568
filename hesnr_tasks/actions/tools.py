"""The tools of agents: what each runs, and which of its parameters holds what. One table, for all who read calls.

A tool is known by the words of its name (`run_in_terminal`, `BashTool`, `mcp__box__execute_bash`), a parameter by its
name. To add a tool or a parameter, add a word to a row.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = [
    "EDITORS",
    "KINDS",
    "PARAMETERS",
    "PATTERNS",
    "is_editor",
    "is_patch",
    "is_prose",
    "names",
    "parameter_role",
    "table",
    "tool_runs",
    "works_on_files",
]


def names(text: str) -> frozenset[str]:
    """The words of `text`, as a set."""
    return frozenset(text.split())


def table(**rows: str) -> dict[str, str]:
    """What each word is, from the words of each kind."""
    return {name: kind for kind, text in rows.items() for name in text.split()}


# what a parameter holds
PARAMETERS = {
    "path": names(
        "path file file_path filepath filename file_name target_file targetfile target_path absolute_path "
        "relative_path notebook_path"
    ),
    "folder": names("dir_path directory"),
    "command": names("command cmd commands bash_command keystrokes script"),
    "code": names("code input python_code source ipython_code program"),
    "content": names(
        "str string text contents content insert old_str new_str file_str insert_str old_string new_string "
        "file_string insert_string old_code new_code file_code insert_code old_text new_text file_text insert_text "
        "old_source new_source file_source insert_source old_contents new_contents file_contents insert_contents "
        "old_content new_content file_content insert_content old_insert new_insert replacement search replace "
        "to_replace code_edit code source"
    ),
    "prose": names(
        "message summary thought final_thought description explanation question reason plan thinking analysis"
    ),
    "answer": names("content text result answer output command response"),  # prose, if the tool speaks
    "language": names("language lang interpreter runtime"),
}  # fmt: skip
PATTERNS = ("pattern", "query", "search_term", "regex", "search", "keyword", "file_pattern", "glob_pattern")

# what a tool that runs no programs of the shell does: its class, by its whole name
KINDS = table(
    read="view read read_file open open_file cat view_file show_file readfile notebookread read_many_files "
    "view_image goto goto_line scroll_up scroll_down fetch webfetch web_fetch browse browser "
    "browse_interactive",
    edit="edit edit_file write write_file create create_file str_replace insert undo_edit multiedit multi_edit "
    "apply_patch replace replace_in_file write_to_file search_replace notebookedit edit_file_by_replace "
    "delete_file append_file append modify_file edit_file_by_line",
    search="grep glob ls find find_file search search_dir search_file search_code list_dir list_files "
    "codebase_search list_directory search_files grep_search file_search websearch web_search "
    "google_web_search find_files semantic_search",
    test="run_tests test run_test runtests execute_tests",
    submit="submit finish complete attempt_completion exit done task_complete answer final_answer",
    think="think sequentialthinking todowrite todo_write todoread update_plan task_tracker plan write_todos "
    "exit_plan_mode",
    run="python execute_ipython_cell execute_ipython ipython run_python execute_python python_repl "
    "code_interpreter",
    vcs="git git_diff git_status git_commit",
    install="install_package",
)  # fmt: skip
EDITORS = ("str_replace_editor", "file_editor", "str_replace_based_edit_tool", "text_editor", "edit_tool")

_RUNNERS = {  # a tool with one of these words in its name runs programs of that language
    "python": names("python ipython jupyter"),
    "shell": names("bash shell terminal cmd sh zsh console"),
    "javascript": names("javascript nodejs"),
    "sql": names("sql"),
}
_SHELLS = names("run execute run_command execute_command exec_command exec command docker_exec container_exec")
_EDITS = names("edit insert create write append replace multiedit")
_FILES = names("view read open file list ls glob grep find search goto undo str")
_SPEAKS = names("finish submit think task attempt ask message report done complete")


@lru_cache(maxsize=1024)
def _words(name: str) -> tuple[str, ...]:
    """The words of a tool's name, without the server or module it comes from."""
    own = name.strip().rpartition("__")[2]
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", own[:200])
    return tuple(word for word in re.split(r"[^A-Za-z0-9]+", spaced.lower()) if word)


@lru_cache(maxsize=1024)
def tool_runs(name: str) -> str | None:
    """The language of the programs a tool runs (a name of `filters/languages.py`), or None."""
    words = _words(name)
    runs = next((language for language, known in _RUNNERS.items() if known & set(words)), None)
    return runs or ("shell" if "_".join(words) in _SHELLS or words[-1:] == ("exec",) else None)


def is_patch(name: str) -> bool:
    """Whether a tool or a parameter is for patches."""
    return bool({"patch", "diff"} & set(_words(name)))


def is_editor(name: str) -> bool:
    """Whether a tool changes files."""
    return bool(_EDITS & set(_words(name)))


def works_on_files(name: str) -> bool:
    """Whether a tool reads or changes files: a `command` beside its path is one of its own, such as `view`."""
    return bool((_EDITS | _FILES) & set(_words(name)))


def is_prose(name: str) -> bool:
    """Whether a tool is for what the agent says or thinks."""
    return _words(name)[:1] != () and _words(name)[0] in _SPEAKS


@lru_cache(maxsize=1024)
def parameter_role(name: str, *roles: str) -> str | None:
    """The first of `roles` (keys of `PARAMETERS`) that a parameter of that name has, or None."""
    plain = re.sub(r"_\d+$", "", "_".join(_words(name))) or name  # `old_str_1`: the first of several
    return next((role for role in roles if name in PARAMETERS[role] or plain in PARAMETERS[role]), None)
