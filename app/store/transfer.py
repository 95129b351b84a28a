"""A chat with its documents and its memory, as one file: out of a library, and into another."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from app.errors import DamagedBlock, InputError, NotFoundError
from app.records import Box, Document, DocumentKind, Evidence, MemoryText, Part, Role, Skipped, Tail
from app.settings import POLICIES
from app.store.bundle import BundleReader, BundleWriter, pack_block, reading, unpack_block, writing
from app.store.documents import ID_DIGITS
from app.store.recipes import differences
from app.store.store import Store
from app.store.tokens import pack, unpack

Record = TypeVar("Record")
MOST_NUMBER = 2**53


@dataclass(frozen=True)
class Fit:
    """What an importing model expects.

    Attributes:
        blocks: (key, token ids) of a memory's blocks, from its root ("" for a document's), token ids and their number.
        texts: token ids and spans of a document's parts.
    """

    recipe: str
    parts: Mapping[str, Any]
    blocks: Callable[[str, Sequence[int], int], list[tuple[str, Sequence[int]]]]
    texts: Callable[[Sequence[Part]], list[MemoryText]]


def export_chat(store: Store, chat: str, path: Path, recipe: str) -> dict[str, int]:
    """Write a chat with its documents and what was read of them.

    Args:
        recipe: whose memories go out when the chat has none of its own.

    Returns:
        counts: documents, messages, blocks, and blocks that were missing or damaged.
    """
    info, tail = store.chat(chat), store.tail(chat)
    recipe = tail.recipe if tail else recipe
    counts = {"documents": 0, "messages": 0, "blocks": 0, "blocks_missing": 0}
    with writing(path) as bundle:
        for id in info.documents:
            try:
                known = store.document(id, recipe)
            except NotFoundError:  # deleted since; the chat's text stands without it
                continue
            _export_document(store, known.id, recipe, bundle, counts)
        messages = store.messages(info.id)
        counts["messages"] = len(messages)
        value: dict[str, Any] = {"info": asdict(info), "messages": [asdict(message) for message in messages]}
        if tail:
            if _export_blocks(store, tail.keys, tail.token_ids, "chat", bundle, counts):
                value["tail"] = {k: v for k, v in asdict(tail).items() if k not in ("recipe", "keys")}
        bundle.add_json("chat.json", value)
        bundle.finish({"recipe": recipe, "parts": store.recipe_parts(recipe)})
    return counts


def _export_document(store: Store, id: str, recipe: str, bundle: BundleWriter, counts: dict[str, int]) -> None:
    info = store.document(id, recipe)
    parts = [asdict(part) for part in store.parts(id)]
    value: dict[str, Any] = asdict(info) | {"sha256": store.sha256(id), "parts": parts, "memories": 0}
    counts["documents"] += 1
    for number, memory in enumerate(store.memories(id, recipe) or ()):
        value["memories"] += 1
        bundle.add(f"documents/{id}/{number}.tokens", pack(memory.token_ids))
        keys = store.manifest(id, recipe, number)
        _export_blocks(store, keys, memory.token_ids, f"documents/{id}/{number}", bundle, counts)
    bundle.add_json(f"documents/{id}.json", value)


def _export_blocks(
    store: Store,
    keys: Sequence[str],
    token_ids: Sequence[int],
    folder: str,
    bundle: BundleWriter,
    counts: dict[str, int],
) -> bool:
    """Blocks up to the first that is damaged or gone; returns whether all went out."""
    codecs = store.blocks.codecs(keys)
    size = (store.blocks.tokens_in(keys[0]) if keys else None) or len(token_ids) + 1
    whole = len(keys) > 0 and size <= len(token_ids)
    groups = [token_ids[i : i + size] for i in range(0, len(token_ids), size)] if whole else []
    groups = [*groups, *[()] * (len(keys) - len(groups))][: len(keys)]  # scores and slots belong to no tokens
    done = 0
    try:
        for index, kv in store.blocks.get_many(keys, groups):
            data = pack_block(pack(groups[done]), index, kv, codecs.get(keys[done], "raw"))
            bundle.add(f"{folder}/{done}.block", data)
            done += 1
    except (DamagedBlock, NotFoundError):
        pass
    counts["blocks"] += done
    counts["blocks_missing"] += len(keys) - done
    return done == len(keys)


def import_chat(store: Store, path: Path, fit_under: Callable[[str], Fit] | None) -> str:
    """Take in a file that `export_chat` wrote; all of it is checked before anything is taken.

    Args:
        fit_under: what the memory has to fit, by the name of the policy that it was made under, "" when there is none;
            None leaves the memory out, and the documents are read again when asked.

    Returns:
        the new chat's id.

    Raises:
        InputError: not such a file, damaged, or its memory was made by another model or recipe: which part differs.
    """
    with reading(path) as bundle:
        fit = fit_under(_made_under(bundle)) if fit_under else None
        if fit:
            _refuse_foreign(bundle, path, fit)
        value = bundle.read_json("chat.json")
        documents = [name for name in bundle.names if re.fullmatch(r"documents/[0-9a-f]{12}\.json", name)]
        try:
            made = [_document(bundle.read_json(name)) for name in documents]
            messages = [read_message(message) for message in value["messages"]]
            tail = _tail(value["tail"]) if fit and "tail" in value else None
            title, attached = str(value["info"]["title"]), [str(id) for id in value["info"]["documents"]]
            model, policy = str(value["info"]["model"]), known_policy(value["info"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path.name}: not a chat of this kind ({error!r}); choose another file") from error
        texts = [_checked_texts(document, bundle, fit) for document in made] if fit else []
        for number, document in enumerate(made):
            id = store.add_document(document)
            if fit and texts[number] and store.parts(id) == list(document.parts):
                _import_memories(store, id, texts[number], bundle, fit)
        chat = store.create_chat(attached, model, title, policy)
        keys = _import_tail(store, chat, tail, bundle, fit) if tail and fit else ()
        store.import_messages(chat, messages, tail and keys and Tail(**tail | {"keys": keys, "recipe": fit.recipe}))
    store.blocks.settle(keys)
    return chat


def _made_under(bundle: BundleReader) -> str:
    parts = bundle.facts.get("parts")
    policy = parts.get("policy") if isinstance(parts, dict) else None
    return known_policy({"policy": policy[0] if isinstance(policy, list) and policy else policy})


def _refuse_foreign(bundle: BundleReader, path: Path, fit: Fit) -> None:
    if bundle.facts.get("recipe") == fit.recipe or not any(name.endswith(".block") for name in bundle.names):
        return
    parts = bundle.facts.get("parts")
    why = differences(parts, fit.parts) if isinstance(parts, dict) else "another model or recipe"
    raise InputError(
        f"{path.name}: its memory was made with {why}; import it with --text-only, the documents are read again then"
    )


def _checked_texts(document: Document, bundle: BundleReader, fit: Fit) -> list[MemoryText]:
    """The document's token ids, which the file's have to equal; [] when it brings none."""
    texts = fit.texts(document.parts)
    names = [f"documents/{document.sha256[:ID_DIGITS]}/{number}.tokens" for number in range(len(texts))]
    if not set(names) <= set(bundle.names):
        return []
    if any(unpack(bundle.read(name)) != text.token_ids for name, text in zip(names, texts, strict=True)):
        raise InputError(f"{document.title}: its token ids are not those of its text; import it with --text-only")
    return texts


def _import_memories(store: Store, id: str, texts: list[MemoryText], bundle: BundleReader, fit: Fit) -> None:
    """The blocks of a document."""
    store.set_memories(id, fit.recipe, texts)
    whole = True
    for number, text in enumerate(texts):
        folder = f"documents/{id}/{number}"
        blocks = fit.blocks("", text.token_ids, _count(bundle, folder))
        done = _import_blocks(store, blocks, folder, bundle)
        store.blocks.flush()
        store.set_manifest(id, fit.recipe, number, [key for key, _ in blocks[:done]])
        whole = whole and done == len(blocks)
    if whole:
        store.set_state(id, fit.recipe, "read")


def _count(bundle: BundleReader, folder: str) -> int:
    """How many blocks of a memory are in the file."""
    return sum(name.startswith(f"{folder}/") and name.endswith(".block") for name in bundle.names)


def _import_blocks(store: Store, blocks: Sequence[tuple[str, Sequence[int]]], folder: str, bundle: BundleReader) -> int:
    """Put the blocks that are in the file, up to the first that is not; returns how many."""
    count = _count(bundle, folder)
    for place, (key, group) in enumerate(blocks[:count]):
        name = f"{folder}/{place}.block"
        try:
            tokens, index, kv, codec = unpack_block(bundle.read(name))
        except ValueError:
            return place
        if tokens != pack(group):
            return place
        store.blocks.put(key, group, index, kv, codec)
    return min(count, len(blocks))


def _import_tail(store: Store, chat: str, tail: dict[str, Any], bundle: BundleReader, fit: Fit) -> tuple[str, ...]:
    """The chat's own blocks, under keys of this library's making; () when some are missing."""
    root = f"{fit.recipe}/chat/{chat}/{time.time_ns()}"
    blocks = fit.blocks(root, tail["token_ids"], _count(bundle, "chat"))
    done = _import_blocks(store, blocks, "chat", bundle)
    store.blocks.flush()
    return tuple(key for key, _ in blocks) if done == len(blocks) else ()


def _record(kind: type[Record], value: Mapping[str, Any], **other: Any) -> Record:
    """A record from JSON, its plain fields checked by name and type."""
    checks = {"str": str, "int": int, "float": (int, float), "str | None": (str, type(None)), "Role": str}
    checks |= {"int | None": (int, type(None)), "DocumentKind": str, "dict[str, Any]": dict}
    fields = {}
    for name, field in kind.__dataclass_fields__.items():  # type: ignore[attr-defined]
        if name in other or name not in value:
            continue
        word = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        wide = isinstance(value[name], int) and abs(value[name]) > MOST_NUMBER
        if wide or not isinstance(value[name], checks.get(word, object)):
            raise ValueError(f"{name} is {value[name]!r:.40}")
        fields[name] = value[name]
    return kind(**fields, **other)


def _document(value: Mapping[str, Any]) -> Document:
    sha256, kind = value["sha256"], value["kind"]
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or kind not in get_args(DocumentKind):
        raise ValueError(f"document {sha256!r:.20} of kind {kind!r:.20}")
    parts = tuple(_part(part) for part in value["parts"])
    skipped = tuple(_record(Skipped, item) for item in value["skipped"])
    notes = tuple(str(note) for note in value["notes"])
    return Document(str(value["title"]), kind, sha256, parts, skipped, notes)


def _part(value: Mapping[str, Any]) -> Part:
    places = tuple((int(start), str(label)) for start, label in value.get("places", ()))
    boxes = tuple(Box(int(start), int(end), *map(float, sides)) for start, end, *sides in value.get("boxes", ()))
    return _record(Part, value, places=places, boxes=boxes)


def known_policy(value: Mapping[str, Any]) -> str:
    """The policy of a chat in JSON; "" when there is none that this release knows."""
    policy = value.get("policy", "")
    return policy if policy in POLICIES else ""


def read_message(value: Mapping[str, Any]) -> tuple[Role, str, dict[str, Any], list[Evidence]]:
    """(role, content, stats, evidence) of a message in JSON.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    role, content, stats = value["role"], value["content"], value["stats"]
    if role not in ("user", "assistant") or not isinstance(content, str) or not isinstance(stats, dict):
        raise ValueError(f"message of {role!r:.20}")
    return role, content, stats, [_evidence(item) for item in value["evidence"]]


def _evidence(value: Mapping[str, Any]) -> Evidence:
    regions = tuple((int(memory), int(region)) for memory, region in value["regions"])
    return _record(Evidence, value, regions=regions)


def _tail(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "token_ids": _integers(value["token_ids"]),
        "turns": _integers(value["turns"]),
        "memories": tuple((str(document), int(number)) for document, number in value["memories"]),
    }


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    numbers = tuple(int(value) for value in values)
    if any(not 0 <= number < 2**31 for number in numbers):
        raise ValueError("a number is out of range")
    return numbers
