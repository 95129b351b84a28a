"""A chat with its documents and its memory, as one file: out of a library, and into another."""

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from app.errors import DamagedBlock, InputError, NotFoundError
from app.records import Document, MemoryText, Part, Tail
from app.settings import KV_CODECS
from app.store import checked
from app.store.blocks import ROW_BYTES
from app.store.bundle import BundleReader, BundleWriter, pack_block, reading, unpack_block, writing
from app.store.documents import IMPORTED, contents, imported_root
from app.store.recipes import differences
from app.store.store import Store
from app.store.text import pack, unpack
from app.wellformed import parse_json

DOCUMENT = re.compile(r"documents/[0-9a-f]{12}\.json")


@dataclass(frozen=True)
class Fit:
    """What an importing model expects.

    Attributes:
        blocks: (key, token ids) of a memory's blocks, from its root, token ids, their number, and whether it is whole,
            as a document's is: then its scores come last.
        texts: token ids and spans of a document's parts.
        check: raises ValueError for a block after so many tokens, of these token ids, whose index or K/V rows cannot
            be used.
        vocabulary: how many tokens the model knows.
    """

    recipe: str
    parts: Mapping[str, Any]
    blocks: Callable[..., list[tuple[str, Sequence[int]]]]
    texts: Callable[[Sequence[Part]], list[MemoryText]]
    check: Callable[[int, Sequence[int], bytes, list[bytes]], None]
    vocabulary: int


@dataclass
class _Incoming:
    """A document of a file, checked.

    Attributes:
        folder: where its memories lie in the file; its name is the document's id there.
        texts: its token ids; empty when its memory does not come with it.
        manifests: keys of its blocks by memory, as far as they came; `whole` when none is missing.
    """

    folder: str
    document: Document
    texts: list[MemoryText]
    manifests: list[list[str]] = field(default_factory=list)
    whole: bool = True

    @property
    def id(self) -> str:
        return self.folder.rpartition("/")[2]


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
        if tail and len(tail.turns) == len(messages) // 2:
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


def import_chat(store: Store, path: Path, fit_under: Callable[[str], Fit] | None, *, own: bool = False) -> str:
    """Take in a file that `export_chat` wrote; all of it is checked before anything is taken.

    Args:
        own: another library of the same owner wrote it just now: its documents are those of their files, with the same
            ids, and what was read of them counts as read here.
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
        try:
            documents = [_incoming(name, bundle, fit) for name in bundle.names if DOCUMENT.fullmatch(name)]
            chat = _Chat.read(bundle, documents, fit)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path.name}: not a chat of this kind ({error!r:.200}); choose another file") from error
        put: list[str] = []
        try:
            for incoming in documents if fit else ():
                _put_memories(store, incoming, bundle, fit, put, own)
            keys = _put_tail(store, chat, bundle, fit, put) if fit and chat.tail else ()
            store.blocks.flush()
            with store.transaction():  # the rows of the library, all or nothing
                return _take(store, documents, chat, keys, fit.recipe if fit else "", own)
        except BaseException as error:
            store.blocks.delete(put)
            if isinstance(error, ValueError):
                raise InputError(f"{path.name}: {error}; nothing of it was taken, get the file again") from error
            raise
        finally:
            store.blocks.settle(put)  # what nothing names by now is garbage


@dataclass(frozen=True)
class _Chat:
    """The chat of a file, checked."""

    title: str
    model: str
    policy: str
    attached: list[str]
    messages: list[checked.MessageValues]
    tail: dict[str, Any] | None

    @classmethod
    def read(cls, bundle: BundleReader, documents: Sequence[_Incoming], fit: Fit | None) -> "_Chat":
        value = bundle.read_json("chat.json")
        info, messages = value["info"], checked.messages(value["messages"])
        known = [document.id for document in documents]
        tail = None
        if fit and value.get("tail") is not None:
            tail = checked.tail(value["tail"], len(messages) // 2, known, fit.vocabulary)
        attached = [checked.text(id) for id in checked.listed(info["documents"])]
        model = checked.title(info["model"])
        return cls(checked.title(info["title"]), model, checked.policy(info), attached, messages, tail)


def _incoming(name: str, bundle: BundleReader, fit: Fit | None) -> _Incoming:
    document, folder = checked.document(bundle.read_json(name)), name.removesuffix(".json")
    document = replace(document, notes=tuple(note for note in document.notes if note != IMPORTED))
    return _Incoming(folder, document, _checked_texts(document, folder, bundle, fit) if fit else [])


def _take(
    store: Store, documents: Sequence[_Incoming], chat: _Chat, keys: Sequence[str], recipe: str, own: bool
) -> str:
    """Write the rows of the library; ids of documents in the file become those that they have here."""
    here: dict[str, str] = {}
    for incoming in documents:
        here[incoming.id] = id = (store.add_document if own else store.add_imported)(incoming.document)
        if incoming.texts and incoming.manifests and (store.root(id, recipe) == recipe) is own:
            store.set_memories(id, recipe, incoming.texts)
            for number, manifest in enumerate(incoming.manifests):
                store.set_manifest(id, recipe, number, manifest)
            if incoming.whole:
                store.set_state(id, recipe, "read")
    attached = [here.get(id, id) for id in chat.attached]
    created = store.create_chat(attached, chat.model, chat.title, chat.policy)
    tail = None
    if chat.tail and keys:
        memories = tuple((here[document], number) for document, number in chat.tail["memories"])
        tail = Tail(**chat.tail | {"memories": memories, "keys": tuple(keys), "recipe": recipe})
    messages = [
        (role, content, stats, [replace(item, document=here.get(item.document, item.document)) for item in evidence])
        for role, content, stats, evidence in chat.messages
    ]
    store.import_messages(created, messages, tail)
    return created


def _made_under(bundle: BundleReader) -> str:
    parts = bundle.facts.get("parts")
    policy = parts.get("policy") if isinstance(parts, dict) else None
    return checked.policy({"policy": policy[0] if isinstance(policy, list) and policy else policy})


def _refuse_foreign(bundle: BundleReader, path: Path, fit: Fit) -> None:
    if bundle.facts.get("recipe") == fit.recipe or not any(name.endswith(".block") for name in bundle.names):
        return
    parts = bundle.facts.get("parts")
    why = differences(parts, fit.parts) if isinstance(parts, dict) else "another model or recipe"
    raise InputError(
        f"{path.name}: its memory was made with {why}; import it with --text-only, the documents are read again then"
    )


def _checked_texts(document: Document, folder: str, bundle: BundleReader, fit: Fit) -> list[MemoryText]:
    """The document's token ids, which the file's have to equal; [] when it brings none."""
    texts = fit.texts(document.parts)
    names = [f"{folder}/{number}.tokens" for number in range(len(texts))]
    if not set(names) <= set(bundle.names):
        return []
    if any(unpack(bundle.read(name)) != text.token_ids for name, text in zip(names, texts, strict=True)):
        raise InputError(f"{document.title}: its token ids are not those of its text; import it with --text-only")
    return texts


def _put_memories(store: Store, incoming: _Incoming, bundle: BundleReader, fit: Fit, put: list[str], own: bool) -> None:
    """Put the blocks of a document, under keys that nothing but this document as it came is looked for by.

    Args:
        own: under the keys of a document that was read here.
    """
    root = fit.recipe if own else imported_root(fit.recipe, contents(incoming.document))
    for number, text in enumerate(incoming.texts):
        folder = f"{incoming.folder}/{number}"
        blocks = fit.blocks(root, text.token_ids, _count(bundle, folder), whole=True)
        done = _put_blocks(store, blocks, folder, bundle, fit, put)
        incoming.manifests.append([key for key, _ in blocks[:done]])
        incoming.whole = incoming.whole and done == len(blocks)


def _put_tail(store: Store, chat: _Chat, bundle: BundleReader, fit: Fit, put: list[str]) -> tuple[str, ...]:
    """Put the chat's own blocks, under keys of this library's making; () when some are missing."""
    assert chat.tail is not None
    root = f"{fit.recipe}/chat/{secrets.token_hex(16)}"
    blocks = fit.blocks(root, chat.tail["token_ids"], _count(bundle, "chat"), whole=False)
    done = _put_blocks(store, blocks, "chat", bundle, fit, put)
    return tuple(key for key, _ in blocks) if done == len(blocks) else ()


def _count(bundle: BundleReader, folder: str) -> int:
    """How many blocks of a memory are in the file."""
    return sum(name.startswith(f"{folder}/") and name.endswith(".block") for name in bundle.names)


def _put_blocks(
    store: Store,
    blocks: Sequence[tuple[str, Sequence[int]]],
    folder: str,
    bundle: BundleReader,
    fit: Fit,
    put: list[str],
) -> int:
    """Put the blocks that are in the file, up to the first that is not, or is of other tokens; returns how many.

    Args:
        put: gets the keys of those that were not stored before.

    Raises:
        ValueError: a block that cannot be used.
    """
    count = min(_count(bundle, folder), len(blocks))
    known = store.blocks.codecs([key for key, _ in blocks[:count]])
    for place, (key, group) in enumerate(blocks[:count]):
        name = f"{folder}/{place}.block"
        if name not in bundle.names:
            return place
        tokens, index, kv, codec = unpack_block(bundle.read(name))
        if tokens != pack(group):
            return place
        if any(len(row) > ROW_BYTES for row in kv) or codec not in KV_CODECS:
            raise ValueError(f"{name} has rows of another size, or codec {codec!r:.20}")
        try:
            fit.check(place * len(blocks[0][1]), group, index, kv)  # all but the last group have one size
        except ValueError as error:
            raise ValueError(f"{name} holds {error}") from error
        if key not in known:
            put.append(key)
        store.blocks.put(key, group, index, kv, codec)
    return count


FORMAT, VERSION = "lectern-chat-json", 1
MAX_BYTES = 256 << 20


def to_json(store: Store, chat: str) -> str:
    """The chat with the titles of its documents."""
    info = store.chat(chat)
    documents = []
    for id in info.documents:
        try:
            documents.append({"id": id, "title": store.document(id, "").title})
        except NotFoundError:
            documents.append({"id": id, "title": None})
    value = {
        "format": FORMAT,
        "version": VERSION,
        "title": info.title,
        "model": info.model,
        "policy": info.policy,
        "updated": info.updated,
        "documents": documents,
        "messages": [asdict(message) for message in store.messages(chat)],
    }
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def is_json(path: Path) -> bool:
    """Whether a file begins like JSON text.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; choose another file") from error


def _other(value: Mapping[str, Any]) -> str:
    """What a JSON file is that is no chat of this version."""
    if value.get("format") != FORMAT:
        return "not a chat that Lectern exported"
    version = value.get("version")
    if version is None:
        return "a chat without the version of its format"
    return f"a chat in version {version!r:.20} of the format, this Lectern reads {VERSION}"


def from_json(store: Store, path: Path) -> str:
    """Take in what `to_json` wrote; returns the new chat's id. Documents of the library join it by their ids.

    Raises:
        InputError: it is something else, or from a newer release.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path.name}: larger than {MAX_BYTES >> 20} MiB; a chat is smaller")
        value = parse_json(path.read_bytes())
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            raise InputError(f"{path.name}: {_other(value)}; choose a chat exported as JSON")
        messages = checked.messages(value["messages"])
        documents = [checked.text(document["id"]) for document in checked.listed(value["documents"])]
        title, model, policy = checked.title(value["title"]), checked.title(value["model"]), checked.policy(value)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise InputError(f"{path.name}: not a chat exported as JSON ({error!r:.100}); choose another file") from error
    with store.transaction():
        chat = store.create_chat(documents, model, title, policy)
        store.import_messages(chat, messages, None)
    return chat
