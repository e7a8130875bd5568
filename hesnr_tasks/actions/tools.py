"""The table of tools and shell programs: what each does, and which parameter of a tool holds what.

A tool is known by the words of its name (`run_in_terminal`, `BashTool`, `mcp__box__execute_bash`), a parameter by its
name, a program by its file name. To add one, add a word to a row.
"""

from __future__ import annotations

import re
from functools import lru_cache


def names(text: str) -> frozenset[str]:
    """The words of `text`, as a set."""
    return frozenset(text.split())


def table(**rows: str) -> dict[str, str]:
    """The kind of each word, from the words of each kind."""
    return {name: kind for kind, text in rows.items() for name in text.split()}


# --- tools ------------------------------------------------------------------------------------------------------------

# role of a parameter → its names
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

# class of a tool that runs no programs of the shell, by its whole name
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
_PURPOSES = {  # what a tool is for → words of its name; of `prose`, what the agent says or thinks, the first word
    "patch": names("patch diff"),
    "edit": names("edit insert create write append replace multiedit"),
    "files": names(  # read or changed: a `command` beside its path is one of its own, such as `view`
        "edit insert create write append replace multiedit view read open file list ls glob grep find search goto undo "
        "str"
    ),
    "prose": names("finish submit think task attempt ask message report done complete"),
}


@lru_cache(maxsize=1024)
def _words(name: str) -> tuple[str, ...]:
    """The words of a tool's name, without the server or module it comes from."""
    own = name.strip().rpartition("__")[2]
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", own[:200])
    return tuple(word for word in re.split(r"[^A-Za-z0-9]+", spaced.lower()) if word)


@lru_cache(maxsize=1024)
def tool_runs(name: str) -> str | None:
    """The language of the programs a tool runs (a name of `filters/regions.py`), or None."""
    words = _words(name)
    runs = next((language for language, runners in _RUNNERS.items() if runners & set(words)), None)
    return runs or ("shell" if "_".join(words) in _SHELLS or words[-1:] == ("exec",) else None)


@lru_cache(maxsize=4096)
def is_for(purpose: str, name: str) -> bool:
    """Whether a tool, or for `patch` a parameter, is for one of `_PURPOSES`, by the words of its name."""
    words = _words(name)
    return not _PURPOSES[purpose].isdisjoint(words[:1] if purpose == "prose" else words)


@lru_cache(maxsize=1024)
def parameter_role(name: str, *roles: str) -> str | None:
    """What a parameter is for, by its name.

    Args:
        name: as in the call; `old_str_1` counts as `old_str`.
        roles: keys of `PARAMETERS`.

    Returns:
        The first of `roles` that the parameter has, or None.
    """
    plain = re.sub(r"_\d+$", "", "_".join(_words(name))) or name  # `old_str_1`: the first of several
    return next((role for role in roles if name in PARAMETERS[role] or plain in PARAMETERS[role]), None)


# --- shell programs: the first word of a command ----------------------------------------------------------------------

# class of a program that needs no look at its arguments
PROGRAMS = table(
    submit="submit finish complete exit_agent",
    edit="rm mv cp mkdir rmdir touch chmod chown ln patch tee truncate dd create edit insert undo_edit apply_patch ed "
    "ex black isort autopep8 yapf unlink install str_replace append rename",
    test="pytest py.test pytest-3 nosetests nose2 tox nox trial ctest jest vitest mocha rspec phpunit bats "
    "runtests.py runtests",
    run="python node ruby perl php lua java javac bash sh zsh ipython make cmake ninja gcc g++ clang rustc mypy "
    "flake8 pylint pyflakes ruff tsc eslint pre-commit docker sqlite3 psql curl wget tar unzip zip gunzip",
    install="apt apt-get yum dnf apk brew gem",
    vcs="git hg svn gh",
    search="grep egrep fgrep zgrep rg ag ack find fd fdfind ls ll dir tree locate which whereis du search_dir "
    "search_file find_file type",
    read="cat bat head tail less more nl od xxd hexdump strings wc file stat diff cmp comm md5sum sha256sum jq yq sed "
    "awk gawk cut sort uniq column tac rev fold open goto scroll_down scroll_up view show_file realpath readlink "
    "basename dirname tr paste xmllint printenv env uname df free ps id whoami hostname date",
    other="cd pushd popd export source . set unset alias true false : pwd echo printf sleep kill pkill wait ulimit "
    "umask shopt read trap exit return eval clear test disown jobs fg bg deactivate conda",
)  # fmt: skip
TEXT_TOOLS = names(
    "cat bat head tail less more nl sed awk gawk cut sort uniq column tac rev fold tr paste wc jq yq "
    "tee grep egrep fgrep zgrep rg ag ack strings xxd od hexdump"
)
WRITERS = names("cat echo printf sed awk gawk head tail sort uniq cut tr nl jq yq envsubst base64")
TAKES_VALUE: dict[str, str] = {  # options that are followed by a word of their own
    "grep": "-e -f -m -A -B -C -d --include --exclude --exclude-dir --max-count --color",
    "rg": "-e -f -m -A -B -C -g -t -T --type --glob -M --max-count --max-depth -d",
    "head": "-n -c", "tail": "-n -c", "sed": "-e -f --expression --file -l", "awk": "-F -v -f", "cut": "-d -f -c -b",
    "sort": "-k -t -o -S", "nl": "-b -n -w -s -v -h -f -i -l -d -p", "ls": "-I --ignore -w", "tree": "-L -I -P -o",
    "python": "-W -X", "perl": "-e -E -I", "jq": "--arg --indent", "touch": "-d -t -r", "cp": "-t", "mv": "-t",
    "du": "-d --max-depth --exclude", "patch": "-i -p -d -o", "mkdir": "-m", "truncate": "-s",
    "pytest": "-k -m -p -c -n -o -W --timeout --maxfail --tb --rootdir --ds --color --durations --cov --deselect "
    "--ignore --parallel --verbosity --settings --reuse-db --pyargs --confcutdir --junitxml --lf-file",
    "black": "-l --line-length -t", "od": "-A -t -N -j", "xxd": "-l -s", "make": "-C -f -j", "fd": "-e -t -d -E -H",
    "tox": "-e -c", "nox": "-s -e", "runtests.py": "--parallel --verbosity --settings",
}  # fmt: skip
ALIKE = {
    "egrep": "grep", "fgrep": "grep", "zgrep": "grep", "ag": "rg", "ack": "rg", "gawk": "awk", "py.test": "pytest",
    "pytest-3": "pytest", "fdfind": "fd", "ll": "ls", "dir": "ls", "nodejs": "node", "pip3": "pip", "rspec": "pytest",
}  # fmt: skip
WRAPPERS = names(
    "sudo env time nice nohup command exec stdbuf timeout xargs poetry uv pipenv hatch pdm bundle "
    "conda mamba npx unbuffer setsid xvfb-run builtin catchsegv coverage"
)
RUNNERS = {"poetry": "run", "uv": "run", "pipenv": "run", "hatch": "run", "pdm": "run", "bundle": "exec",
            "conda": "run", "mamba": "run", "coverage": "run"}  # fmt: skip
WRAPPER_VALUES = names("-n -u -I -P -d -L -s -k -p -g --name --prefix --signal --kill-after -o --source")
SUBCOMMANDS = names(
    "git hg svn pip npm yarn pnpm cargo go poetry uv pipenv conda mvn gradle dotnet docker apt apt-get gh"
)
