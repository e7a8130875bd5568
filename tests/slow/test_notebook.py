"""The notebook runs from its first cell to its last, and prints what it printed when it was saved."""

import contextlib
import io
import json
import re

from tests import ROOT


def test_the_notebook_runs_and_says_what_it_shows():
    cells = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    namespace = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec("".join(cell["source"]), namespace)
        saved = "".join(line for part in cell["outputs"] if part.get("name") == "stdout" for line in part["text"])
        digits = re.compile(r"[+-]?\d+(\.\d+)?|#+")  # the last ones differ between CPUs
        assert digits.sub("0", output.getvalue()) == digits.sub("0", saved)
    assert namespace["difference"].ci_low < namespace["difference"].value < namespace["difference"].ci_high
