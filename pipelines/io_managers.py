"""How the values of assets are kept: each as an object named after its content, and a pointer per partition that says which.

    objects/<asset>/<digest>/...        written beside and renamed: complete or absent, never changed afterwards
    partitions/<asset>/<partition>      the digest of the partition's latest value, replaced in one move
    remembered/<asset>/<inputs>         the digest of what was made of the same inputs before, so that it is not made again

A run that dies leaves the pointer where it was, and equal values share one object. What is read must be what the pointer says.
What neither names any more goes with time, see `pipelines.prune`.
"""

import functools
import hashlib
import os
import re
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
import polars as pl

from pipelines.batch import Batch, Inputs
from pipelines.failures import plain_failures
from pipelines.ledger import Ledger
from prompt_core import PromptmillError
from prompt_core.data import Splits
from prompt_core.data.digest import frame_digest
from prompt_core.durable import make_folder, sync, sync_all, write_whole
from prompt_core.errors import kind_of_fault
from prompt_core.evaluation import Contender, Evaluation
from prompt_core.evaluation.contender_files import contenders_json, read_contenders

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core import TunedPrompt

_DIGEST = re.compile("[0-9a-f]{64}")


class ContentAddressed(dg.ConfigurableIOManager):
    """Base: subclasses say how a value becomes a digest and a path, and comes back.

    Attributes:
        suffix: of a value that other programs open by the ending of its name.
    """

    root: str
    suffix: str = ""

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
        """Keep the value of a run's only task, or those of its many: each is reported as soon as it lies there."""
        if not isinstance(obj, Batch):
            self._keep(context, context.asset_partition_key, obj)
            return
        asset = context.asset_key.path[-1]
        Ledger(root=self.root).note(context.step_context.dagster_run, asset, obj.failed)
        for key, made in obj.made.items():
            self._keep(context, key, made.value)
            context.log_event(dg.AssetMaterialization(context.asset_key, partition=key, metadata=made.metadata, tags=obj.tags[key]))

    @plain_failures
    def load_input(self, context: dg.InputContext) -> Inputs[Any]:
        keys, asset = list(context.asset_partition_keys), context.asset_key.path[-1]
        failed = Ledger(root=self.root).failed(context.step_context.dagster_run, asset) if len(keys) > 1 else {}
        return Inputs(asset, keys, functools.partial(self._latest, context.asset_key), failed)

    def remembered(self, asset: str, made_of: str) -> Any | None:
        """The value that was made of the same inputs before, if it is still there and intact.

        Args:
            made_of: a digest of all that decides the value.
        """
        try:
            return self._checked(self.place(dg.AssetKey(asset), _digest_in(self._note(asset, made_of))))
        except (FileNotFoundError, PromptmillError):
            return None

    def remember(self, asset: str, made_of: str, value: Any) -> None:
        """Keep a value under what it was made of."""
        self._keep_under(self._note(asset, made_of), dg.AssetKey(asset), value)

    def _keep(self, context: dg.OutputContext, key: str, value: Any) -> None:
        self._keep_under(self._pointer(context.asset_key, key), context.asset_key, value)

    def _keep_under(self, note: Path, asset: dg.AssetKey, value: Any) -> None:
        """Write the value where it is not there yet, then the note that names it; also while `pipelines.prune` goes through the folder."""
        digest = self.digest(value)
        path = self.place(asset, digest)
        if self._is_intact(path):
            _touch(path)
        else:
            self._commit(value, path)
        for former in digests_in([note]):
            _touch(self.place(asset, former))  # a run may be reading it: it is old from here on
        write_whole(note, digest.encode())
        if not path.exists():  # pruned before the note was there
            self._commit(value, path)

    def _latest(self, asset: dg.AssetKey, key: str) -> tuple[Any, str]:
        try:
            digest = _digest_in(self._pointer(asset, key))
        except FileNotFoundError:
            where = f"{asset.to_user_string()}[{key}]"
            raise PromptmillError(where, "has no value", "Materialize it first.") from None
        return self._checked(self.place(asset, digest)), digest

    def _checked(self, path: Path) -> Any:
        """The value of an object.

        Raises:
            PromptmillError: it cannot be read, or is not what its name says.
        """
        value = self.load(path)
        try:
            found = self.digest(value)
        except TypeError as error:  # null where there were texts
            raise _damaged(path, f"was changed ({error})") from None
        if found != named_after(path):
            raise _damaged(path, f"was changed: the digest of its content is {found[:12]}...")
        return value

    def _commit(self, value: Any, path: Path) -> None:
        make_folder(path.parent)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
        try:
            self.save(value, beside / "content")
            sync_all(beside / "content")
            if path.exists():  # damaged, see _is_intact
                path.rename(beside / "damaged")
            (beside / "content").rename(path)
            sync(path.parent)
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
            self._checked(path)
        except PromptmillError:
            return False
        return True

    def place(self, asset: dg.AssetKey, digest: str) -> Path:
        """Where the value with a digest lies."""
        return Path(self.root) / "objects" / asset.path[-1] / f"{digest}{self.suffix}"

    def _pointer(self, asset: dg.AssetKey, key: str) -> Path:
        # A key may hold slashes, and `.` and `..` are keys too: the quoted name gets a suffix.
        return Path(self.root) / "partitions" / asset.path[-1] / f"{quote(key, safe='')}.digest"

    def _note(self, asset: str, made_of: str) -> Path:
        return Path(self.root) / "remembered" / asset / f"{made_of}.digest"


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
            raise _unreadable(path, error) from None


class Texts(ContentAddressed):
    """Values that are a text each, under the digest of its bytes."""

    def digest(self, value: str) -> str:
        return hashlib.sha256(value.encode()).hexdigest()

    def save(self, value: str, path: Path) -> None:
        path.write_text(value, encoding="utf-8")

    def load(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from None


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
        path.write_text(value.model_dump_json(indent=1, exclude_unset=True), encoding="utf-8")

    def load(self, path: Path) -> Evaluation:
        try:
            return Evaluation.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None


class ContenderFiles(ContentAddressed):
    """Untuned contenders as JSON."""

    def digest(self, value: Sequence[Contender]) -> str:
        return contenders_digest(value)

    def save(self, value: Sequence[Contender], path: Path) -> None:
        path.write_bytes(contenders_json(value))

    def load(self, path: Path) -> list[Contender]:
        try:
            return read_contenders(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None


def contenders_digest(contenders: Sequence[Contender]) -> str:
    """SHA-256 (64 hex characters) over everything that was measured, but not by a clock."""
    return hashlib.sha256(contenders_json(contenders, with_seconds=False)).hexdigest()


def evaluation_digest(evaluation: Evaluation) -> str:
    """SHA-256 (64 hex characters) over everything that was measured, but not by a clock."""
    # What an earlier version could not know is left unset, so that its evaluations keep their digests.
    return hashlib.sha256(evaluation.model_dump_json(exclude={"seconds"}, exclude_unset=True).encode()).hexdigest()


def digests_noted(root: Path, asset: str, *, remembered: bool = True) -> set[str]:
    """The digests of an asset's values that some partition has now, or that are `remembered` for their inputs."""
    folders = [root / "partitions" / asset, *([root / "remembered" / asset] if remembered else [])]
    return digests_in(note for folder in folders for note in folder.glob("*.digest"))


def digests_in(notes: Iterable[Path]) -> set[str]:
    """What notes name; one that is gone or damaged names nothing."""
    found = set()
    for note in notes:
        with suppress(FileNotFoundError, PromptmillError):
            found.add(_digest_in(note))
    return found


def _digest_in(note: Path) -> str:
    """What a note names.

    Raises:
        FileNotFoundError: there is none.
        PromptmillError: it names nothing; an empty name would be the folder of all values.
    """
    digest = note.read_bytes().decode("ascii", errors="replace")
    if not _DIGEST.fullmatch(digest):
        raise _damaged(note, f"holds {digest[:12]!r} where a digest belongs")
    return digest


def named_after(path: Path) -> str:
    """The digest of the object at a path."""
    return path.name.partition(".")[0]


def _touch(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.utime(path)


def _unreadable(path: Path, error: Exception) -> PromptmillError:
    return _damaged(path, f"cannot be read ({str(error).splitlines()[0]})", kind_of_fault(error))


def _damaged(path: Path, what: str, kind: type[PromptmillError] = PromptmillError) -> PromptmillError:
    return kind(str(path), what, "Materialize the asset again.")
