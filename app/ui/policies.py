"""The memory policy of a chat: what the list offers, and what choosing another one does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.settings import POLICIES
from app.ui import format

if TYPE_CHECKING:
    from app.chat import DocumentChat

LINES = {
    "keep-all": "keeps everything and looks up what fits the question",
    "bounded": "like keep-all, but under a cap older regions keep their heavier half",
    "h2o": "keeps the tokens that drew most attention and drops the others",
    "streaming": "sees only the beginning and the latest",
    "infllm": "for models not tuned to long texts: finds large blocks by a few keys",
    "full": "plain attention to everything; slow on long texts",
}


def choices() -> list[tuple[str, str]]:
    """(what the list shows, policy)."""
    return [(f"{policy}: {LINES[policy]}", policy) for policy in POLICIES]


def change(chat: "DocumentChat", chat_id: str | None, policy: str, picked: Sequence[str]) -> tuple[str, str]:
    """Have a chat answered under another policy from the next question on; a new chat gets it when it begins.

    Args:
        picked: documents that the chat is about.

    Returns:
        (status HTML, the policy that stands now).
    """
    try:
        if chat_id is not None:
            chat.saved.set_chat_policy(chat_id, policy)
        elif chat.model.model_state().state == "ready":  # one that cannot be had is refused at once
            chat.model.engine_under(policy)
        turns = bool(chat_id and chat.saved.chat(chat_id).messages)
        unread = [info.title for info in chat.library.documents(policy) if info.id in picked and info.state != "read"]
    except Exception as error:
        return format.failure(error), chat.model.policy_of(chat_id)
    told = []
    if unread:
        told.append(f"Not read under {policy} yet: {', '.join(unread)}. The next question reads it first.")
    if turns:
        told.append(
            f"From the next question on this chat is answered under {policy}: its turns are run again then, and the "
            "answers above stay as they were given."
        )
    return format.notice(" ".join(told)) if told else "", policy
