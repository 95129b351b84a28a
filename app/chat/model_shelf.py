"""The models on this computer and those that can be fetched, with what each has read and what of it the chats need."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from app.chat.fetching import Fetching, Offer
from app.chat.loaded_model import LoadedModel
from app.models.shelf import Choice, KnownModels, LocalModel, add_folder, local_models, remove_folder
from app.records import ChatInfo, OtherModel

if TYPE_CHECKING:
    from app.store.store import Store


class ModelShelf:
    """What there is beside the model that is loaded."""

    def __init__(self, model: LoadedModel, store: "Store", fetching: Fetching) -> None:
        self._model, self._store, self._fetching = model, store, fetching
        self._speeds: Sequence[tuple[int, float]] = ()  # of models that were loaded here, and of the computer
        self._measured: tuple[int, float] | None = None  # this computer, see `app.models.fits.measured`

    def models(self) -> list[LocalModel]:
        """The checkpoints and adapters on this computer, with what each has read. Never waits for the model."""
        loaded = self.loaded_choice()
        weights = {choice.id: made for made, choice in KnownModels(self._model.settings.folder).choices().items()}
        documents: Counter[str] = Counter()
        for digest, count in self._store.read_with().items():
            documents[self._weights(digest)] += count
        chats = Counter(self._weights(digest) for digest, _ in self._store.tails().values())
        found = []
        for model in local_models(self._model.settings, loaded):
            its = [weights[choice.id] for choice in model.choices if choice.id in weights]
            read, kept = (sum(counts[made] for made in its) for counts in (documents, chats))
            found.append(replace(model, documents=read, chats=kept))
        return self._with_fits(found, weights)

    def _with_fits(self, models: list[LocalModel], weights: Mapping[str, str]) -> list[LocalModel]:
        """The models with what can be said of memory and speed; nothing before the first one was loaded.

        Args:
            weights: fingerprint of the weights of each choice, where it is known.
        """
        if self._model.loaded is None:
            return models
        from app.models import fits

        loaded, free, size = KnownModels(self._model.settings.folder).loaded, fits.free_memory(), fits.weight_itemsize()
        speeds = []
        for model in models:
            for made in (weights[choice.id] for choice in model.choices if choice.id in weights):
                speeds.append((model.parameters, loaded[made]["tokens_per_s"]))
        self._speeds = [*speeds, self._computer()]
        return [
            replace(m, fit=fits.fit(m.parameters, m.parameters * size, free, self._speeds))
            if m.usable and not m.loaded and m.kind == "checkpoint" and m.parameters
            else m
            for m in models
        ]

    def _computer(self) -> tuple[int, float]:
        from app.models import fits

        self._measured = self._measured or fits.measured()
        return self._measured

    def offers(self) -> list[Offer]:
        """Models that can be fetched by name; none before a model was loaded, for nothing can be said of them."""
        if self._model.loaded is None:
            return []
        from app.models import fits
        from app.models.folder import cached

        have = [name for name, folder in cached() if (folder / "config.json").exists()]
        speeds = self._speeds or [self._computer()]
        return self._fetching.offers(fits.free_memory(), fits.weight_itemsize(), speeds, have)

    def loaded_choice(self) -> str:
        """Id of the Choice that is loaded; "" while none is."""
        return Choice(self._model.settings.model, self._model.settings.adapter).id if self._model.loaded else ""

    def _weights(self, recipe: str) -> str:
        """Fingerprint of the model that a recipe belongs to; "" for a recipe of an older release."""
        return (self._store.recipe_parts(recipe) or {}).get("weights", "")

    def model_folders(self) -> list[str]:
        """Folders that the user added."""
        return KnownModels(self._model.settings.folder).folders

    def add_model_folder(self, folder: str) -> list[str]:
        """See `app.models.shelf.add_folder`."""
        return add_folder(self._model.settings.folder, folder)

    def remove_model_folder(self, folder: str) -> None:
        """See `app.models.shelf.remove_folder`."""
        remove_folder(self._model.settings.folder, folder)

    def other_model(self, chat: str) -> OtherModel | None:
        """The model that made a chat's memory where that is not the loaded one; None when none is loaded."""
        info = self._store.chat(chat)
        return self._others([info]).get(info.id)

    def other_models(self) -> dict[str, OtherModel]:
        """`other_model` of every chat that has one, by id. Never waits for the model."""
        return self._others(self._store.chats())

    def _others(self, chats: Sequence[ChatInfo]) -> dict[str, OtherModel]:
        engine, tails, weights = self._model.loaded, self._store.tails(), cache(self._weights)
        if engine is None:
            return {}
        here = engine.recipe_parts["weights"]
        foreign = [info for info in chats if info.id in tails and weights(tails[info.id][0]) not in ("", here)]
        if not foreign:
            return {}
        known = KnownModels(self._model.settings.folder)
        choices, speed = known.choices(), engine.tokens_per_s or known.loaded.get(here, {}).get("tokens_per_s", 0.0)
        read_here = cache(
            lambda policy: {info.id: info for info in self._store.documents(self._model.recipe_under(policy))}
        )
        read_there = cache(lambda recipe: {info.id: info.tokens for info in self._store.documents(recipe)})
        found = {}
        for info in foreign:
            recipe, tokens = tails[info.id]
            documents, lengths = read_here(info.policy or self._model.policy_of()), read_there(recipe)
            unread = [documents[id] for id in info.documents if id in documents and documents[id].state != "read"]
            tokens += sum(document.tokens or lengths.get(document.id, 0) for document in unread)
            made = weights(recipe)
            name = known.loaded.get(made, {}).get("name") or info.model or "another model"
            choice = choices[made].id if made in choices else ""
            found[info.id] = OtherModel(name, engine.name, choice, tokens, tokens / speed if speed else 0.0)
        return found
