"""Metadata that depend on where the source lies: the project's address, and README's links.

A page of a package index shows README.md away from the repository's other files. Links to these,
and pictures, get the address of the repository that the package is built in, `git remote get-url
origin`, or what PROJECT_URL says. Where there is none, links become text and pictures are left out.
"""

import os
import re
import subprocess
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")  # relative ones
SSH = re.compile(r"(?:ssh://)?git@([^:/]+)[:/](.+)")


class ProjectMetadata(MetadataHookInterface):
    """Fills in `readme` and `urls`."""

    def update(self, metadata: dict[str, object]) -> None:
        """Add the dynamic fields."""
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        url = address(root)
        text = absolute(text, url)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if url:
            metadata["urls"] = {
                "Repository": url,
                "Documentation": f"{url}#readme",
                "Changelog": f"{url}#changelog",
                "Issues": f"{url}/issues",
            }


def address(root: Path) -> str:
    """The repository's web address; empty if it is not known."""
    if url := os.environ.get("PROJECT_URL"):
        return url.rstrip("/")
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        remote = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    if match := SSH.fullmatch(remote):
        remote = f"https://{match[1]}/{match[2]}"
    return remote.removesuffix(".git").rstrip("/") if remote.startswith("https://") else ""


def absolute(text: str, url: str) -> str:
    """A Markdown text whose links to the repository's files have its address."""

    def replacement(match: re.Match[str]) -> str:
        is_picture, label, path, anchor = match[1], match[2], match[3], match[4] or ""
        if not url:
            return "" if is_picture else label
        view = "raw" if is_picture else "blob"
        return f"{is_picture}[{label}]({url}/{view}/HEAD/{path}{anchor})"

    return LINK.sub(replacement, text)
