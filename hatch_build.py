"""The description of the package on its index: README.md, whose links lead to the repository that publishes it.

On an index relative links lead nowhere. Where the workflow publishes, its environment names the repository and the
tag; elsewhere the repository is not known: the text keeps its relative links and loses its pictures.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Description(MetadataHookInterface):
    """Sets `project.readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the table `project`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, os.environ)}


def absolute(text: str, environment: Mapping[str, str]) -> str:
    """README.md with links that lead to the repository in `GITHUB_REPOSITORY`, as it was at `GITHUB_REF_NAME`."""
    relative = r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)"
    if not (name := environment.get("GITHUB_REPOSITORY")):
        return re.sub(r"(?m)^" + relative.replace("(!?)", "!") + r"\n\n", "", text)
    home = f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
    version = environment.get("GITHUB_REF_NAME", "main")

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"
        return f"{match[1]}[{match[2]}]({home}/{kind}/{version}/{match[3]})"

    return re.sub(relative, link, text)
