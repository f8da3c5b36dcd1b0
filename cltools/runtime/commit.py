"""Which commit of the repository the program runs from."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit of the checkout that holds this package, or "" where it is installed without one.

    “with changes” follows if tracked files differ from it.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        found = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{found} with changes" if changed else found


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
