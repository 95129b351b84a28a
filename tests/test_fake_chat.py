"""The fake stands for the real chat: same methods, same parameters."""

import inspect

import pytest

from app.chat import DocumentChat
from app.store.store import Store
from tests.fake_chat import FakeDocumentChat, FakeStore

# The fake is made directly; ingestion and the endpoint, which alone calls the last four, have tests of their own.
REAL_ONLY = {"open", "text", "reader", "take_turns", "forget_empty", "beside", "follow"}


def public(kind: type) -> dict[str, object]:
    return {name: member for name, member in inspect.getmembers(kind, callable) if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(set(public(DocumentChat)) - REAL_ONLY))
def test_fake_chat_has_the_method(name: str) -> None:
    real, fake = getattr(DocumentChat, name), getattr(FakeDocumentChat, name, None)
    assert fake is not None
    assert parameters(fake) == parameters(real)


@pytest.mark.parametrize("name", sorted(public(FakeStore)))
def test_fake_store_has_the_same_parameters(name: str) -> None:
    assert parameters(getattr(FakeStore, name)) == parameters(getattr(Store, name))


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Name, kind and default of each parameter, without self; a positional name may differ where it has no default."""
    found = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        by_name = parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty
        found.append((parameter.name if by_name else "", parameter.kind, parameter.default))
    return found
