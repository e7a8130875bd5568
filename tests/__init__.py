"""Tests. `ROOT`: the clone; `SHARED`: real public trajectories beside it, absent for most users."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "trajectories"
