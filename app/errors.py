"""Every error that a user can meet.

Each message says what was wrong, the value, and what to do next. The UI, the CLI and the endpoint
print the message alone, never a traceback.
"""

import errno
from pathlib import Path

NAME_CHARS = 200
# What a user's file, folder or disk can make the system refuse.
REFUSED = {
    errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip


class LecternError(Exception):
    """Base of all errors shown to a user."""


class ConfigError(LecternError):
    """A flag, a setting or an environment variable cannot be used."""


class InputError(LecternError):
    """A file, folder or archive cannot be read as a document."""


class PasswordError(InputError):
    """A document is encrypted and the password is missing or wrong."""


class ModelError(LecternError):
    """A model folder, adapter or hub id cannot be loaded."""


class TrainError(LecternError):
    """A training run does not fit this machine, or cannot go on."""


class StoreError(LecternError):
    """The data folder cannot be used, or stored data is damaged or foreign."""


class BusyError(StoreError):
    """Another process owns the data folder.

    Attributes:
        url: where that process serves, or None when it does not.
    """

    def __init__(self, message: str, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class LostLibrary(StoreError):
    """The library is gone or empty where there was one. Nothing was changed; the user has to choose.

    Attributes:
        home: the data folder.
        found: what is there, in words.
        copy: what the copy holds that can be put back, in words; None when there is no copy.
    """

    def __init__(self, found: str, ways: str, home: Path, copy: str | None) -> None:
        super().__init__(f"{found}. Lectern changed nothing and waits for you: {ways}")
        self.found, self.home, self.copy = found, home, copy


class InUseError(LecternError):
    """The model is answering or reading for somebody else; what is asked can be asked again."""


class LimitError(LecternError):
    """A user has had what they may.

    Attributes:
        wait_s: when to ask again; None where something has to be deleted first.
    """

    def __init__(self, message: str, wait_s: int | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class DamagedBlock(StoreError):
    """Stored memory that fails its check, or belongs to other tokens; it has to be read again."""


class NotFoundError(LecternError):
    """A document, chat or evidence id is not known."""


class CancelledError(LecternError):
    """The user stopped the work; what was finished before is kept."""


def refusal(error: BaseException) -> str | None:
    """What to tell of a file that the system refused; None for other errors, which nobody foresaw."""
    if not isinstance(error, OSError) or error.errno not in REFUSED or error.filename is None:
        return None
    name = str(error.filename)
    shown = name if len(name) <= NAME_CHARS else f"{name[:NAME_CHARS]}…"
    return f"{shown}: {error.strerror}; look at the name, its permissions and the disk, or choose another"
