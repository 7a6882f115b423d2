"""How the values of assets are kept: each as an object named after its content, and a pointer per partition that says which.

    objects/<asset>/<digest>/...        written beside and renamed: complete or absent, never changed afterwards
    partitions/<asset>/<partition>      the digest of the partition's latest value, replaced in one move

A run that dies leaves the pointer where it was, and equal values share one object.
"""

import hashlib
import shutil
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
import polars as pl

from pipelines.failures import plain_failures
from prompt_core import PromptmillError
from prompt_core.data import Splits
from prompt_core.data.digest import frame_digest
from prompt_core.evaluation import Evaluation

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core import TunedPrompt


class ContentAddressed(dg.ConfigurableIOManager):
    """Base: subclasses say how a value becomes a digest and a path, and comes back."""

    root: str

    @abstractmethod
    def digest(self, value: Any) -> str:
        """A name for the value that depends on its content alone."""

    @abstractmethod
    def save(self, value: Any, path: Path) -> None:
        """Write the value at a path that does not exist yet."""

    @abstractmethod
    def load(self, path: Path) -> Any:
        """What `save` wrote."""

    @plain_failures
    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        digest = self.digest(obj)
        path = self._object(context, digest)
        if not self._is_intact(path):
            self._commit(obj, path)
        pointer = self._pointer(context)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        beside = pointer.with_name(f".{context.run_id}-{pointer.name}")
        beside.write_text(digest, encoding="ascii")
        beside.replace(pointer)

    @plain_failures
    def load_input(self, context: dg.InputContext) -> Any:
        try:
            digest = self._pointer(context).read_text(encoding="ascii")
        except FileNotFoundError:
            where = f"{context.asset_key.to_user_string()}[{context.asset_partition_key}]"
            raise PromptmillError(where, "has no value", "Materialize it first.") from None
        return self.load(self._object(context, digest))

    def _commit(self, value: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
        try:
            self.save(value, beside / "content")
            if path.exists():  # damaged, see _is_intact
                path.rename(beside / "damaged")
            (beside / "content").rename(path)
        except OSError:
            if not self._is_intact(path):  # else another run wrote the same content first
                raise
        finally:
            shutil.rmtree(beside)

    def _is_intact(self, path: Path) -> bool:
        """Whether an object is there and readable: one that a dying disk damaged is written again, not trusted."""
        if not path.exists():
            return False
        try:
            return self.digest(self.load(path)) == path.name
        except PromptmillError:
            return False

    def _object(self, context: dg.OutputContext | dg.InputContext, digest: str) -> Path:
        return Path(self.root) / "objects" / context.asset_key.path[-1] / digest

    def _pointer(self, context: dg.OutputContext | dg.InputContext) -> Path:
        # A key may hold slashes, and `.` and `..` are keys too: the quoted name gets a suffix.
        return Path(self.root) / "partitions" / context.asset_key.path[-1] / f"{quote(context.asset_partition_key, safe='')}.digest"


class FrameFiles(ContentAddressed):
    """polars frames as Parquet."""

    def digest(self, value: pl.DataFrame) -> str:
        return frame_digest(value)

    def save(self, value: pl.DataFrame, path: Path) -> None:
        value.write_parquet(path)

    def load(self, path: Path) -> pl.DataFrame:
        try:
            return pl.read_parquet(path, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _damaged(path, error) from None


class SplitsFolders(ContentAddressed):
    """Train, validation and test side as a folder of Parquet files."""

    def digest(self, value: Splits) -> str:
        return value.digest

    def save(self, value: Splits, path: Path) -> None:
        value.save(path)

    def load(self, path: Path) -> Splits:
        return Splits.load(path)


class PromptFolders(ContentAddressed):
    """Tuned prompts as safetensors and JSON, checked against their digest on every load."""

    def digest(self, value: "TunedPrompt") -> str:
        return value.digest

    def save(self, value: "TunedPrompt", path: Path) -> None:
        value.save(path)

    def load(self, path: Path) -> "TunedPrompt":
        from prompt_core import TunedPrompt

        return TunedPrompt.load(path)


class EvaluationFiles(ContentAddressed):
    """Evaluations as JSON."""

    def digest(self, value: Evaluation) -> str:
        return evaluation_digest(value)

    def save(self, value: Evaluation, path: Path) -> None:
        path.write_text(value.model_dump_json(indent=1), encoding="utf-8")

    def load(self, path: Path) -> Evaluation:
        try:
            return Evaluation.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None


def evaluation_digest(evaluation: Evaluation) -> str:
    """SHA-256 (64 hex characters) over everything that was measured, but not by a clock."""
    return hashlib.sha256(evaluation.model_dump_json(exclude={"seconds"}).encode()).hexdigest()


def _damaged(path: Path, error: Exception) -> PromptmillError:
    return PromptmillError(str(path), f"cannot be read ({str(error).splitlines()[0]})", "Materialize the asset again.")
