"""README and docs/: links lead somewhere, command lines parse, names are real. What runs is in test_docs_blocks.py."""

import importlib
import importlib.util
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from lm_eval._cli.harness import HarnessCLI

from hesnr_tasks import cli
from hesnr_tasks.formats import FORMATS
from hesnr_tasks.tasks.settings import TaskSettings
from tests import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "results/README.md"))]
FOLDERS = r"`((?:hesnr_tasks|task_configs|tests|benchmarks|scripts|examples)/[\w./]*)`"
YAML = [*(ROOT / "task_configs").rglob("*.yaml"), *(ROOT / "hesnr_tasks").rglob("*.yaml")]
OTHERS = {".", "mini-extra", "pre-commit", "python3"}  # commands whose arguments are not checked


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    not_run: dict[str, str]  # beginning of a command → why it is not run; of all: ""


def blocks(*languages, pages=PAGES):
    """The fenced blocks of pages in these languages; without: all."""
    fence = re.compile(r"^((?:<!-- not run: [^\n]* -->\n)*)```(\w*)\n(.*?)^```$", re.M | re.S)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in fence.finditer(text):
            if not languages or match[2] in languages:
                not_run = dict(re.findall(r"not run: (?:`([^`]*)`: )?(.*) -->", match[1]))
                yield Block(page, text.count("\n", 0, match.start(3)), match[2], match[3], not_run)


class Command(NamedTuple):
    place: str
    words: list[str]
    not_run: str  # why


def commands(shell=None):
    """Every command in blocks for the shell; without: of all pages."""
    for block in shell or blocks("console", "sh", "bash"):
        pending = ""
        for number, line in enumerate(block.text.replace("\\\n", " \0").split("\n"), block.line + 1):
            pending += line.replace("\0", "\n") + "\n"
            try:
                words = shlex.split(pending.replace("\n", " ") if "#" not in pending else pending, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                continue
            pending = ""
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                line = " ".join(words[:end])
                why = next((why for start, why in block.not_run.items() if line.startswith(start)), "")
                yield Command(f"{block.page.name}:{number}", words[:end], why)
                words = words[end + 1 :]
        assert not pending, f"{block.page.name}:{block.line}: {pending}"


def anchors(page):
    """The fragments of a page's headings, as code hosts form them."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", outside, re.M)
    }


# --- links and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page):
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, fragment = target.partition("#")
        if "://" in target:
            continue
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists() or (fragment and fragment not in anchors(goal)):
            dead.append(target)
    assert dead == []


def test_the_text_for_the_package_index_has_no_relative_link():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    published = {"GITHUB_REPOSITORY": "org/repo", "GITHUB_REF_NAME": "v1"}
    shown = module.absolute(readme, published)
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", shown)
    assert all(target.startswith("https://") for _, target in targets)
    (picture,) = (target for mark, target in targets if mark)
    assert (ROOT / picture.removeprefix("https://github.com/org/repo/raw/v1/")).is_file()
    assert "![" not in module.absolute(readme, {})
    assert len(module.absolute(readme, {}).splitlines()) == len(readme.splitlines()) - 2


def test_modules_and_files_that_are_named_exist():
    missing = []
    for page in [*PAGES, *YAML]:
        text = page.read_text(encoding="utf-8")
        for name in set(re.findall(r"\bhesnr_tasks(?:\.[A-Za-z_]\w*)+", text)):
            if not resolves(name):
                missing.append((page.name, name))
        for path in set(re.findall(FOLDERS, text)):
            if not (ROOT / path).exists():
                missing.append((page.name, path))
    assert missing == []


def resolves(name):
    """Whether a dotted name is a module, or a name in one; what a package exports lazily is not imported."""
    home, _, last = name.rpartition(".")
    with suppress(ModuleNotFoundError):  # the home is no package
        if importlib.util.find_spec(name):
            return True
    module = importlib.import_module(home)
    return last in getattr(module, "__all__", ()) or hasattr(module, last)


def test_every_command_and_format_is_described():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "`make test`" in text
    table = text.split("## Commands\n")[1].split("\n## ")[0]
    choices = set(subcommands(cli.command_parser()))
    assert choices <= set(re.findall(r"`(?:hesnr )?(\w+)`", table))
    for page in PAGES:
        named = set(re.findall(r"`hesnr ([a-z]\w*)", page.read_text(encoding="utf-8")))
        assert named <= choices | {"eval"}, page.name
    formats = (ROOT / "docs" / "trajectories.md").read_text(encoding="utf-8")
    assert [f.name for f in FORMATS if f"| `{f.name}` | {f.rule} |" not in formats] == []


def subcommands(parser):
    (action,) = (action for action in parser._actions if action.choices and action.nargs == "A...")
    return action.choices


def test_the_picture_of_the_layers_is_the_contract():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contract = re.findall(r'"([\w :|]+)"', project.split("\nlayers = [")[1].split("]")[0])
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    picture = page.split("```\n")[1]
    layers = [re.match(r"\w+(?: · \w+)*", line)[0].split(" · ") for line in picture.splitlines()]
    assert [sorted(layer) for layer in layers] == [sorted(re.split(r" [:|] ", layer)) for layer in contract]


# --- command lines ----------------------------------------------------------------------------------------------------


def test_command_lines_parse(capsys):
    hesnr_parser, lm_eval_parser = cli.command_parser(), HarnessCLI()._parser
    tasks = {path.stem for path in (ROOT / "task_configs").rglob("*.yaml")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = ", project.split("[project.optional-dependencies]")[1].split("\n[")[0], re.M)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    checked = {"hesnr": 0, "lm_eval": 0}
    for place, words, *_ in commands():
        if "lm_eval" in words:  # also behind `accelerate launch -m`
            words = words[words.index("lm_eval") :]
        program, *arguments = words
        if program in checked:
            checked[program] += 1
        try:
            if program == "lm_eval" or words[:2] == ["hesnr", "eval"]:
                arguments = arguments[arguments[0] == "eval" :]
                args = lm_eval_parser.parse_args(["run", *arguments])
                TaskSettings.read(args.metadata or {})
                named = ",".join([args.tasks] if isinstance(args.tasks, str) else args.tasks).split(",")
                assert {task for task in named if task.startswith("hesnr_")} <= tasks, place
            elif program == "hesnr":
                hesnr_parser.parse_args(arguments)
            elif program == "make":
                assert arguments[0] in targets, place
            elif program == "pip":
                required = set(re.findall(r"\.\[([\w,]+)\]", " ".join(arguments))[0].split(","))
                assert required <= set(extras), place
            elif words[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(arguments[1]), place
            else:
                assert program in OTHERS, place
        except SystemExit:
            pytest.fail(f"{place}: {' '.join(words)}\n{capsys.readouterr().err}")
    assert min(checked.values()) > 10


def test_a_wrong_option_would_be_noticed():
    for parser, words in (
        (cli.command_parser(), ["analyze", "x", "--epsilom", "1"]),
        (HarnessCLI()._parser, ["run", "--task_s"]),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
