"""What a benchmark ran on, and what disturbed it: every benchmark prints it on stderr, around its figures."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_INSIDE = "HESNR_BENCHMARK"  # set for the processes that a benchmark starts: they say nothing
_PACKAGES = ("torch", "transformers", "lm_eval", "numpy", "vllm", "sglang")
_FLAGS = {"avx512f": "AVX-512", "amx_tile": "AMX", "asimd": "NEON"}


def busy() -> float:
    """Seconds of processor time that all programs have had; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        ticks = [int(tick) for tick in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        return (sum(ticks[:3]) + sum(ticks[5:7])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def own_time() -> float:
    """Seconds of processor time that this program and its finished runs have had."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def about() -> str:
    """Commit, kind of machine, versions, date: on one line."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changed = " with uncommitted changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    installed = []
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed.append(f"{name} {version(name)}")
    words = [
        f"commit {commit}{changed}",
        f"{os.cpu_count()} cores {platform.machine()}{''.join(f' {name}' for name in _features())}",
        f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        f"Python {platform.python_version()}",
        *installed,
        f"{datetime.now(timezone.utc):%Y-%m-%d}",
    ]
    return ", ".join(words)


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _features() -> list[str]:
    with contextlib.suppress(OSError):
        words = set(Path("/proc/cpuinfo").read_text().split())
        return [name for flag, name in _FLAGS.items() if flag in words]
    return []


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Print `about()`, then how long the block took and how much of the machine other programs took meanwhile."""
    if os.environ.get(_INSIDE):
        yield
        return
    os.environ[_INSIDE] = "1"
    print(about(), file=sys.stderr, flush=True)
    start, before, own = time.perf_counter(), busy(), own_time()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        others = max(0.0, busy() - before - (own_time() - own)) / seconds / (os.cpu_count() or 1)
        print(f"{seconds / 60:.1f} minutes; other programs took {others:.0%} of the machine", file=sys.stderr)
