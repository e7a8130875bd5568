"""Shared by all tests: where the real trajectories are, and tiny real models and tokenizers."""

import ast
import functools
import gc
import importlib.util
import logging
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import ROOT, SHARED

# read when libraries are first imported, here and in processes of tests: nobody's caches or settings count or are
# changed, those of a worker beside this one neither, no hub is asked, and workers do not wait for each other's threads
_PLACE = tempfile.TemporaryDirectory(prefix="hesnr-tests-", ignore_cleanup_errors=True)
_OURS = ("XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "TRACKIO_DIR", "MSWEA_GLOBAL_CONFIG_DIR")
os.environ.update({name: str(Path(_PLACE.name, name.lower())) for name in _OURS})
os.environ.update({"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "MSWEA_SILENT_STARTUP": "1"})
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a busy machine is no defect, and the same code has the same examples; others with --hypothesis-profile=others
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("others", _ANY_SPEED, max_examples=1000)
settings.register_profile("tests", _ANY_SPEED, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real public trajectories, beside a clone; absent for most users."""
    if not SHARED.is_dir():
        pytest.skip("the real trajectories are not beside this clone (../shared/trajectories)")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def no_environment_report():
    """lm-eval runs `pip list` and ten more programs after each evaluation, for seconds, to describe the machine."""
    with pytest.MonkeyPatch.context() as patch:
        if "torch" in sys.modules:
            patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "not collected")
        yield


@pytest.fixture
def blank_figures(monkeypatch):
    """For tests that do not look at what is drawn, which takes half a second a figure."""
    from matplotlib.figure import Figure

    from hesnr_tasks import plotting

    def blank(canvas, stem, save=plotting.save):
        return save(Figure((1, 1)), stem)

    for place in ("hesnr_tasks.plotting", "hesnr_tasks.report.figures"):
        monkeypatch.setattr(f"{place}.save", blank)


@pytest.fixture(autouse=True)
def no_closed_logs():
    """Commands that ran in this process leave handlers whose streams ended with their test."""
    for name in (None, "lm_eval", "hesnr_tasks"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


def missing(test: Path) -> set[str]:
    """Libraries that a test imports, by itself or through modules of ours, and that are not installed."""
    files, libraries = [test], set()
    for path in files:  # grows while it is read
        for name in imported(path):
            library, file = name.partition(".")[0], ROOT / name.replace(".", "/")
            if library in ("tests", "benchmarks", "hesnr_tasks"):
                modules = (file.with_suffix(".py"), file / "__init__.py")
                files += [module for module in modules if module.is_file() and module not in files]
            else:
                libraries.add(library)
    return {library for library in libraries if importlib.util.find_spec(library) is None}


@functools.cache
def imported(path: Path) -> set[str]:
    """Modules and names that a file imports: a test anywhere in it, our package where it is imported itself."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree) if path.is_relative_to(ROOT / "tests") else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def pytest_ignore_collect(collection_path):
    """Without PyTorch (other versions of Python are tried without it), what the other tests need decides alone."""
    if importlib.util.find_spec("torch") is None and collection_path.name.startswith("test_"):
        return bool(missing(collection_path)) or None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported for thousands of tests is there to stay: no garbage collection looks through it again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup():
    """Random numbers that a test draws without a seed are the same in any order of tests."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_collection_modifyitems(items):
    """What is under tests/slow is marked slow: `make check` leaves it out."""
    for item in items:
        if "slow" in item.path.relative_to(ROOT / "tests").parts:
            item.add_marker(pytest.mark.slow)
