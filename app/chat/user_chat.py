"""The data folder of one user, over the model of the owner: within limits, and nothing of it concerns the model."""

from collections.abc import Iterator
from pathlib import Path

from app.chat.document_chat import DocumentChat
from app.chat.fetching import Offer
from app.chat.loaded_model import LoadedModel
from app.chat.model_shelf import ModelShelf
from app.errors import ConfigError
from app.models.shelf import LocalModel
from app.records import SHARED, LoadStep
from app.store.users import Limits

OWNERS = "the model is the owner's; ask them for another one"


class GuestModel(LoadedModel):
    """The owner's model, which a user can neither exchange nor unload."""

    def switch_model(self, choice: str) -> Iterator[LoadStep]:
        """Raises ConfigError."""
        raise ConfigError(OWNERS)

    def unload_model(self) -> None:
        """Raises ConfigError."""
        raise ConfigError(OWNERS)


class GuestShelf(ModelShelf):
    """Nothing of the owner's files."""

    def models(self) -> list[LocalModel]:
        return []

    def offers(self) -> list[Offer]:
        return []

    def model_folders(self) -> list[str]:
        return []

    def add_model_folder(self, folder: str) -> list[str]:
        """Raises ConfigError."""
        raise ConfigError(OWNERS)

    def remove_model_folder(self, folder: str) -> None:
        """Raises ConfigError."""
        raise ConfigError(OWNERS)


class UserChat(DocumentChat):
    """As DocumentChat; what would exchange the model, or look at the owner's files, is refused."""

    guest = True
    _model_kind, _shelf_kind = GuestModel, GuestShelf

    @classmethod
    def over(cls, owner: DocumentChat, home: Path, limits: Limits) -> "UserChat":
        """The data folder of a user.

        Raises:
            LecternError: the model is not there, or the folder cannot be used.
        """
        made = owner.beside(home, cls, limits, disk_budget_gb=limits.gigabytes)
        assert isinstance(made, cls)
        return made

    def mark_shared(self, document: str, user: str) -> None:
        """Say of a document whose copy it is; its text stays as that user sent it."""
        self.store.add_note(self.library.document(document).id, f"{SHARED}{user}; read-only")
