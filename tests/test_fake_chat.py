"""The fake stands for the real chat and its parts: same methods, same parameters."""

import inspect

import pytest

from app.chat import DocumentChat
from app.chat.jobs import Jobs
from app.chat.library import DocumentPages, Library
from app.chat.loaded_model import LoadedModel
from app.chat.model_shelf import ModelShelf
from app.chat.saved import SavedChats
from app.chat.transfers import Transfers
from app.store.store import Store
from tests.fake_chat import FakeDocumentChat, FakeStore

PARTS = (DocumentChat, Jobs, LoadedModel, ModelShelf, Library, DocumentPages, SavedChats, Transfers)
# The fake is made directly, and has no sessions; the endpoint, which alone calls the last four, has tests of its own.
REAL_ONLY = {"open", "start", "use", "share", "answering", "ended", "forget", "sessions", "sessions_under"}
REAL_ONLY |= {
    "undisturbed",
    "without_reading",
    "sessions_of",
    "recipe_under",
    "take_turns",
    "forget_empty",
    "beside",
    "follow",
}


def public(kind: type) -> dict[str, object]:
    return {name: member for name, member in inspect.getmembers(kind, callable) if not name.startswith("_")}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_a_part_has_few_methods_and_the_fake_has_them_too(part: type) -> None:
    methods = public(part)
    assert len(methods) <= 15
    for name in methods.keys() - REAL_ONLY - ({"close"} if part is not DocumentChat else set()):
        assert parameters(getattr(FakeDocumentChat, name)) == parameters(methods[name]), name


def test_a_method_stands_in_one_part_only() -> None:
    names = [name for part in PARTS for name in public(part) if name != "close"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", sorted(public(FakeStore).keys() - {"found"}))
def test_fake_store_has_the_same_parameters(name: str) -> None:
    assert parameters(getattr(FakeStore, name)) == parameters(getattr(Store, name))


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Name, kind and default of each parameter, without self; a positional name may differ where it has no default."""
    found = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        by_name = parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty
        found.append((parameter.name if by_name else "", parameter.kind, parameter.default))
    return found
