"""Before a run of one's own: `hesnr doctor`, what is installed and what to do about it, and `hesnr demo`."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from hesnr_tasks import __version__, demo
from hesnr_tasks.cli.ladder import score_and_report
from hesnr_tasks.errors import HesnrError
from hesnr_tasks.ladder.run import LocalPool
from hesnr_tasks.tasks import check_lm_eval, registered_files, tasks_path

Status = Literal["ok", "missing", "note"]

_LOW_DISK = 5 * 2**30
_PACKAGES: tuple[tuple[str, Status, str], ...] = (
    ("torch", "missing", "for --model hf: pip install 'hesnr-tasks[hf]'"),
    ("transformers", "missing", "for tokenizers and --model hf: pip install 'hesnr-tasks[hf]'"),
    ("pyarrow", "note", "score files, analyze, compare and report: pip install 'hesnr-tasks[report]'"),
    ("matplotlib", "note", "figures: pip install 'hesnr-tasks[report]'"),
)


class Check(NamedTuple):
    """One line of the report.

    Args:
        group: heading under which it stands.
        name: what was looked at.
        status: `missing`: something that `lm_eval --tasks hesnr_swe` cannot do without; `note`: optional.
        text: what there is, and what to do if something is to be done.
    """

    group: str
    name: str
    status: Status
    text: str


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr doctor`."""
    parser.set_defaults(execute=run_doctor)
    parser.add_argument("--json", action="store_true", help="for scripts")


def run_doctor(args: argparse.Namespace) -> int:
    """Print all checks; status 1 if something necessary is missing."""
    results = list(checks())
    missing = [check for check in results if check.status == "missing"]
    if args.json:
        print(json.dumps([check._asdict() for check in results], indent=2))
        return bool(missing)
    group = ""
    for check in results:
        if check.group != group:
            group = check.group
            print(group)
        mark = {"ok": "ok", "missing": "MISSING", "note": "-"}[check.status]
        width = max(60, shutil.get_terminal_size((1 << 16, 24)).columns)  # a log keeps lines whole
        line = f"  {mark:7} {check.name:14} {check.text}"
        print(textwrap.fill(line, width, subsequent_indent=" " * 25, break_on_hyphens=False))
    if missing:
        print(f"\n{len(missing)} to mend before lm_eval can score: {', '.join(check.name for check in missing)}")
    else:
        print("\nReady. Try it: hesnr demo")
    return bool(missing)


def checks() -> Iterator[Check]:
    """Everything that is looked at, in order. No model is loaded, nothing is downloaded."""
    yield Check("Versions", "hesnr-tasks", "ok", f"{__version__} ({Path(__file__).parent.parent})")
    yield Check("Versions", "Python", "ok", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    try:
        yield Check("Versions", "lm-eval", "ok", check_lm_eval())
    except HesnrError as error:
        yield Check("Versions", "lm-eval", "missing", str(error).replace("\n", " "))
    for name, status, without in _PACKAGES:
        version = installed_version(name)
        yield Check("Versions", name, "ok" if version else status, version or f"not installed; {without}")
    try:
        registered = registered_files()
        folder, current = registered or (None, True)
    except HesnrError:
        yield Check("Tasks", "registration", "note", "no lm-eval to register with")
    else:
        if folder is None:
            remedy = f"hesnr register, or --include_path {tasks_path()}, or `hesnr eval`"
            yield Check("Tasks", "registration", "note", f"plain lm_eval does not know the tasks: {remedy}")
        elif current:
            yield Check("Tasks", "registration", "ok", f"lm_eval finds the tasks ({folder})")
        else:
            yield Check("Tasks", "registration", "missing", f"{folder} is of another version: hesnr register")
    yield from _engines()
    yield from _devices()
    yield from _disk()


def installed_version(package: str) -> str | None:
    """The installed version; None: not importable. Nothing is imported."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _engines() -> Iterator[Check]:
    group = "Engines"
    torch = installed_version("torch")
    yield Check(group, "hf", "ok" if torch else "note", "--model hf" if torch else "needs torch and transformers")
    for name, purpose in (("vllm", "--model vllm"), ("sglang", "--model sglang")):
        version = installed_version(name)
        yield Check(group, name, "ok" if version else "note", f"{purpose}, {version}" if version else "not installed")
    lacking = [name for name in ("requests", "aiohttp", "tenacity") if installed_version(name) is None]
    servers = "--model local-completions and other servers of completions"
    text = f"{servers} need {', '.join(lacking)}: pip install 'hesnr-tasks[api]'" if lacking else servers
    yield Check(group, "servers", "note" if lacking else "ok", text)


def _devices() -> Iterator[Check]:
    group = "Machine"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    yield Check(group, "CPU", "ok", f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB of memory")
    if not installed_version("torch"):
        return
    import torch

    if not torch.cuda.is_available():
        built = f"this torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch has no CUDA"
        yield Check(group, "GPU", "note", f"none that torch can use ({built}); models run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: use dtype=float16"
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {dtype}"
        yield Check(group, f"GPU {index}", "ok", text)


def _disk() -> Iterator[Check]:
    cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub")
    for name, path in (("here", Path.cwd()), ("model cache", Path(cache).expanduser())):
        folder = next(parent for parent in (path, *path.parents) if parent.exists())
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            yield Check("Disk", name, "note", f"{path}: {error.strerror}")
            continue
        low = "" if free > _LOW_DISK else "; little: a checkpoint of 8 B parameters takes 16 GB"
        writable = "" if os.access(folder, os.W_OK) else "; cannot be written"
        yield Check(
            "Disk", name, "note" if low or writable else "ok", f"{free / 2**30:.0f} GiB free in {path}{low}{writable}"
        )


# --- hesnr demo: `hesnr ladder run` on the shipped miniature ----------------------------------------------------------


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr demo`."""
    parser.set_defaults(execute=run_demo)
    folder = Path("out/demo")
    parser.add_argument("-o", "--output", type=Path, default=folder, help=f"where results go (default: {folder})")
    parser.add_argument("--tasks", help="tasks of lm_eval, in place of the ladder's")


def run_demo(args: argparse.Namespace) -> int:
    """Score the shipped ladder, print its verdict and leaderboard, and write its report."""
    for needed in ("lm_eval", "torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            raise HesnrError(f"the demo needs {needed}. Install it with: pip install 'hesnr-tasks[hf]'")
    path, here = demo.ladder_file(), Path.cwd()
    short = path.relative_to(here) if path.is_relative_to(here) else path
    print(
        "Twelve small models each read 100 agent runs with lm_eval, two models at a time. Then: which of them\n"
        "HE-SNR chooses, and whether it tells what they solve after fine-tuning better than perplexity does.\n"
        f"$ hesnr ladder run {short} -o {args.output}",
        flush=True,
    )
    workers = min(2, os.cpu_count() or 1)
    score_and_report(short, args.output, tasks=args.tasks, pool=lambda _: LocalPool(workers))
    return 0
