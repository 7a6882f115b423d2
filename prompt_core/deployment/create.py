"""A folder in which `dagster dev` works at once: task, data, settings, and the code location as a copy that its owners may change."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from prompt_core.errors import PromptmillError

_HERE = Path(__file__).resolve().parent
# In a checkout these lie where they are used; the wheel carries them as files beside this one (pyproject.toml, force-include).
_CHECKOUT = _HERE.parents[1]
_FROM_ELSEWHERE = {"pipelines": "pipelines", "dagster.yaml": "deploy/dagster.yaml"}
_UNFIT = ("${", "?", "%")  # the first begins a variable in .env, quoted or not; the others mean something in the address of SQLite
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "demo.py")  # the demo is the repository's own


def create_deployment(folder: Path) -> None:
    """Write a new deployment, all of it or nothing.

    The wheel has no package `pipelines`, because a deployment's own code is of that name: this is where it comes from.

    Raises:
        PromptmillError: the folder is there and not empty, cannot be written, or has a sign in its path that Dagster reads otherwise.
    """
    folder = folder.absolute()
    if sign := next((sign for sign in _UNFIT if sign in str(folder)), None):
        raise PromptmillError(str(folder), f'has "{sign}" in its path, which Dagster reads as something else', "Name another place.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise PromptmillError(str(folder), what, "Name a folder that does not exist yet or has nothing in it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            content = Path(beside) / folder.name
            shutil.copytree(_HERE / "files", content)
            (content / "gitignore").rename(content / ".gitignore")
            (content / ".env").write_text(f"DAGSTER_HOME={_quoted(folder)}\nPROMPTMILL_AUTOMATION=on\n", encoding="utf-8")
            for name, in_checkout in _FROM_ELSEWHERE.items():
                _copy(_HERE / name if (_HERE / name).exists() else _CHECKOUT / in_checkout, content / name)
            content.replace(folder)
    except OSError as error:
        raise PromptmillError(str(folder), f"cannot be written ({error.strerror or error})", "Name another place.") from None


def _quoted(folder: Path) -> str:
    """A path as a value of .env: no sign in it is a comment or ends it."""
    return "'" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=_NOT_COPIED)
    else:
        shutil.copy(source, target)
