"""Tool calls that are not shell commands: what they do, from their names and parameters."""

from __future__ import annotations

import json
import re

from hesnr_tasks.actions import Call, Parameter
from hesnr_tasks.search.keys_classes import Part
from hesnr_tasks.search.keys_python import written_files
from hesnr_tasks.search.keys_tables import names, table

__all__ = ["SCRIPTS", "is_shell", "parameter_values", "shell_text", "tool_part", "tool_whole"]

_SHELLS = names(
    "bash execute_bash shell terminal run_bash sh run_command run_shell_command execute_command command "
    "local_shell container.exec bash_tool run_terminal_cmd exec_command run execute mswea_bash_command"
)
SCRIPTS = ("command", "cmd", "commands", "script", "code", "input", "")
_PATHS = ("path", "file_path", "filename", "file", "target_file", "notebook_path", "file_name", "dir_path", "directory")
_PATTERNS = ("pattern", "query", "search_term", "regex", "search", "keyword", "file_pattern", "glob_pattern")
_KINDS = table(
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
_EDITORS = ("str_replace_editor", "file_editor", "str_replace_based_edit_tool", "text_editor", "edit_tool")
_PATCHED = re.compile(r"^\*\*\* (?:Update|Add|Delete) File: (\S+)", re.MULTILINE)


def parameter_values(call: Call, text: str) -> dict[str, str]:
    """The parameters of a call as text, JSON escapes resolved; the first of two with the same name counts."""
    found: dict[str, str] = {}
    for parameter in call.parameters:
        found.setdefault(parameter.name, _value(parameter, text))
    return found


def is_shell(call: Call) -> bool:
    """Whether the call is to run a shell script."""
    return call.form == "text" or call.name.lower() in _SHELLS


def shell_text(call: Call, text: str) -> str | None:
    """The shell script that a call runs, or None if it is a tool of another kind."""
    if not is_shell(call):
        return None
    values = parameter_values(call, text)
    found = next((values[name] for name in SCRIPTS if name in values), None)
    if found is None:
        return None if values else ""
    return _joined(found)


def _joined(value: str) -> str:
    """Some shells take a list of words, written as JSON: `["bash", "-lc", "ls"]`."""
    if not value.lstrip().startswith('["'):
        return value
    try:
        words = json.loads(value)
    except ValueError:
        return value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return value
    import shlex

    return shlex.join(words)


def tool_part(call: Call, text: str) -> Part:
    """What a call does that is no shell command; an unknown tool is `other`, with its name for a target."""
    values = parameter_values(call, text)
    name = call.name.lower().rsplit("__", 1)[-1].strip()
    path = tuple(value for value in (values.get(key, "").strip() for key in _PATHS) if value)[:1]
    if name in _EDITORS:
        return Part("read" if values.get("command", "").strip() == "view" else "edit", path)
    kind = _KINDS.get(name, "other")
    if kind == "run":
        code = next((values[key] for key in SCRIPTS if key in values), "")
        written = tuple(file for file in written_files(code) if file)
        return Part("edit", written) if written or written_files(code) else Part("run", ("-",))
    if kind == "edit" and not path:
        path = tuple(file for value in values.values() for file in _PATCHED.findall(value))
    if kind == "search" and not path:
        path = tuple(value for value in (values.get(key, "").strip() for key in _PATTERNS) if value)[:1]
    if kind in ("submit", "think"):
        return Part(kind)
    return Part(kind, path or ((call.name,) if kind == "other" and call.name else ()))


def tool_whole(call: Call, text: str) -> str:
    """Name and parameters in one order; white space at the ends of lines and values does not count."""
    values = sorted(parameter_values(call, text).items())
    lines = [f"{key}={json.dumps(_trimmed(value), ensure_ascii=False)}" for key, value in values]
    return " ".join([call.name.strip() or "call", *lines])


def _trimmed(value: str) -> str:
    return "\n".join(line.rstrip() for line in value.strip().splitlines())


def _value(parameter: Parameter, text: str) -> str:
    raw = text[parameter.value_start : parameter.value_end]
    if not parameter.encoded:
        return raw
    try:
        return str(json.loads(f'"{raw}"', strict=False))
    except ValueError:
        return raw
