"""The documentation builds as a site, strictly: all links and headings are there, references are generated."""

import importlib.util
import subprocess
import sys

import pytest

import hesnr_tasks
from tests import ROOT


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_without_a_warning_and_describes_the_whole_surface():
    build = subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_docs.py"], capture_output=True, text=True, check=False
    )
    assert build.returncode == 0, build.stdout + build.stderr
    site = ROOT / "build" / "site"
    api = (site / "reference" / "api.html").read_text(encoding="utf-8")
    assert [name for name in hesnr_tasks.__all__ if f".{name}" not in api] == []
    commands = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "hesnr ladder verdict" in commands
    assert "http" not in "".join(part for part in api.split("<script")[1:] if "src=" in part.split(">")[0])
