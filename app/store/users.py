"""Users of the endpoint: who they are, what they may take, and what their keys hash to. The keys are kept nowhere."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.errors import BusyError, ConfigError, NotFoundError, StoreError
from app.store.home import acquire
from app.store.text import now

FILE, FOLDER = "users.json", "users"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")


@dataclass(frozen=True)
class Limits:
    """What a user may take.

    Attributes:
        documents, gigabytes: in the library; the bytes are those of files that were sent.
        tokens_per_minute: read and said, over the last minute.
        answers: at the same time; as many more may wait.
    """

    documents: int = 200
    gigabytes: float = 2.0
    tokens_per_minute: int = 200_000
    answers: int = 2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < 10**12:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: must be above 0")


@dataclass(frozen=True)
class User:
    """Somebody with a key.

    Attributes:
        id: names the folder of the library; a user who is added again under the same name begins with an empty one.
        digest: SHA-256 of the key, which is 24 random bytes: nothing that could be guessed.
    """

    name: str
    id: str
    digest: str
    created: str
    limits: Limits = field(default_factory=Limits)


class Users:
    """The list in a data folder. A Lectern that runs sees what another process changes in it."""

    def __init__(self, home: Path) -> None:
        self.home, self.path = home, home / FILE
        self._read: tuple[int, list[User]] | None = None

    def everyone(self) -> list[User]:
        """Everybody, in the order in which they were added.

        Raises:
            StoreError: the file is damaged; nobody gets in until it is mended.
        """
        try:
            stamp = self.path.stat().st_mtime_ns
            if self._read is None or self._read[0] != stamp:
                self._read = stamp, [_user(value) for value in json.loads(self.path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path}: the list of users cannot be read ({error}); mend or remove it") from error
        return self._read[1]

    def of_key(self, key: str) -> User | None:
        """Whose key this is."""
        return self.of_digest(_digest(key))

    def of_digest(self, digest: str) -> User | None:
        """Whose key has this digest."""
        return next((user for user in self.everyone() if secrets.compare_digest(user.digest, digest)), None)

    def add(self, name: str, limits: Limits = Limits()) -> str:
        """Let somebody in; returns the key, which cannot be shown again.

        Raises:
            ConfigError: the name cannot be one, or is taken.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"user {name!r:.60}: use 1 to 32 small letters, digits, dots, dashes or underscores")
        users = self.everyone()
        if any(user.name == name for user in users):
            raise ConfigError(f"user {name!r}: is there already; remove it first, or choose another name")
        key = f"lectern-{name}-{secrets.token_urlsafe(24)}"
        self._write([*users, User(name, secrets.token_hex(8), _digest(key), now(), limits)])
        return key

    def remove(self, name: str) -> bool:
        """Let somebody in no more and delete their library.

        Returns:
            whether it is deleted; one that a running Lectern has open goes when that starts the next time.

        Raises:
            NotFoundError: there is no such user.
        """
        users = self.everyone()
        if all(user.name != name for user in users):
            raise NotFoundError(f"user {name!r:.60}: not there; `users list` shows them")
        self._write([user for user in users if user.name != name])
        return not self.sweep()

    def folder(self, user: User) -> Path:
        """The user's own data folder."""
        return self.home / FOLDER / user.id

    def sweep(self) -> int:
        """Delete the libraries of users who are gone; returns how many could not be, being in use."""
        kept, left = {user.id for user in self.everyone()}, 0
        for folder in (self.home / FOLDER).glob("*"):
            if folder.name in kept or not folder.is_dir():
                continue
            try:
                acquire(folder).release()
                shutil.rmtree(folder)
            except (BusyError, OSError):
                left += 1
        return left

    def _write(self, users: list[User]) -> None:
        fresh = self.path.with_suffix(".new")
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                json.dump([asdict(user) for user in users], file, indent=1)
            os.replace(fresh, self.path)
        except OSError as error:
            raise StoreError(f"{self.path}: the list of users cannot be kept ({error}); look at its rights") from error
        self._read = None


def _user(value: Mapping[str, Any]) -> User:
    return User(**{**value, "limits": Limits(**value["limits"])})


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
