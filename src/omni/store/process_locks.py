"""Lock files that say which processes of this machine live: each holds a lock on its own for as long as it runs.

The operating system drops a lock with the process that held it, however that ended, so a file that can be locked belongs to nobody who
lives. Locks are flock's: they follow the open file and not its name, which lets a file appear under its name already locked, and shows
when one was removed while somebody waited to open it.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from omni.errors import StoreError

_SUFFIX = ".lock"
# Under this name a file is made and locked before others can see it.
_NEW_SUFFIX = ".lock.new"
_OWNER_ONLY = 0o600


class ProcessLocks:
    """The lock files of one folder. Methods raise StoreError when the folder cannot be used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def create(self, process_id: str) -> None:
        """Make and hold the lock of a new process. The folder is made when it is missing."""
        new = self._folder / f"{process_id}{_NEW_SUFFIX}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        except OSError as exc:
            raise _unusable(self._folder, exc) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self._path(process_id))
        except OSError as exc:
            os.close(descriptor)
            raise _unusable(self._folder, exc) from exc
        self._held[process_id] = descriptor

    def list_ids(self) -> set[str]:
        """The processes that have a lock file."""
        return {path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")}

    def is_held(self, process_id: str) -> bool:
        """Whether this lock is ours."""
        return process_id in self._held

    def claim(self, process_id: str) -> bool:
        """Hold the lock of a process that is gone, made anew when its file is gone too; False when somebody holds it.

        Claiming one that is ours already is True again.
        """
        if process_id in self._held:
            return True
        path = self._path(process_id)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, _OWNER_ONLY)
        except OSError as exc:
            raise _unusable(self._folder, exc) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(descriptor), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        except OSError as exc:
            os.close(descriptor)
            raise _unusable(self._folder, exc) from exc
        if is_ours:
            self._held[process_id] = descriptor
        else:
            # Held by one who lives, or the file we locked is no longer the one of that name.
            os.close(descriptor)
        return is_ours

    def remove(self, process_id: str) -> None:
        """Remove a lock file that is ours and let go of it. Does nothing for others."""
        if process_id not in self._held:
            return
        try:
            self._path(process_id).unlink(missing_ok=True)
        except OSError as exc:
            raise _unusable(self._folder, exc) from exc
        finally:
            self._let_go(process_id)

    def let_go_of_all(self) -> None:
        """Drop every lock that is ours and leave the files: who comes next may claim them."""
        for process_id in list(self._held):
            self._let_go(process_id)

    def _let_go(self, process_id: str) -> None:
        # Closing drops the lock, whatever else it reports.
        with suppress(OSError):
            os.close(self._held.pop(process_id))

    def _path(self, process_id: str) -> Path:
        return self._folder / f"{process_id}{_SUFFIX}"


def _unusable(folder: Path, exc: OSError) -> StoreError:
    return StoreError(
        f"The folder {folder} cannot hold the locks of processes ({exc.strerror}); "
        "AUTOMAGIK_OMNI_SQLITE_DATABASE_PATH says which data folder is used, with any database."
    )
