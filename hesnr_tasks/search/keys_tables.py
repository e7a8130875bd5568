"""Which shell commands do what, which of their options take a word, and which only run another command."""

from __future__ import annotations

__all__ = [
    "ALIKE",
    "KINDS",
    "RUNNERS",
    "TAKES_VALUE",
    "TEXT_TOOLS",
    "WRAPPERS",
    "WRAPPER_VALUES",
    "WRITERS",
    "names",
    "table",
]


def names(text: str) -> frozenset[str]:
    """The words of `text`, as a set."""
    return frozenset(text.split())


def table(**rows: str) -> dict[str, str]:
    """What each word is, from the words of each kind."""
    return {name: kind for kind, text in rows.items() for name in text.split()}


KINDS = table(
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
