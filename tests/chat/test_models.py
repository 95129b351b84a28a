"""Models on this computer: what is found, and the exchange of the loaded one."""

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import app.runtime.load
from app.chat import DocumentChat
from app.errors import InputError, LecternError, ModelError, NotFoundError
from app.models.folder import cached
from app.models.inspect import inspect
from app.models.shelf import Choice, KnownModels, LocalModel, add_folder, local_models, remove_folder
from app.runtime.load import first_try
from app.settings import Settings
from tests import tiny
from tests.chat.checkpoints import save_checkpoint
from tests.chat.opened import SHORT, finish, write
from tests.checkpoints import adapter, cut


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints and an adapter of the first."""
    folder = tmp_path_factory.mktemp("models")
    save_checkpoint(folder / "alpha", 0)
    save_checkpoint(folder / "beta", 1)
    adapter(folder / "tuned", folder / "alpha", target_modules=["q_proj"], r=2)
    return folder


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this computer's hub cache holds must not decide a test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A data folder with the models in it."""
    shutil.copytree(made, tmp_path / "home" / "models")
    return tmp_path / "home"


@pytest.fixture
def chat(home: Path) -> Iterator[DocumentChat]:
    """The app on `alpha`."""
    settings = Settings(home=home, model=str(home / "models" / "alpha"), device="cpu", threads=1)
    chat = DocumentChat.open(settings, load=False)
    yield chat
    chat.close()


def named(chat: DocumentChat, name: str) -> LocalModel:
    return next(model for model in chat.shelf.models() if model.name == name)


def load(chat: DocumentChat, name: str) -> list[str]:
    """Switch to a model; what was told meanwhile."""
    return [step.step for step in chat.model.switch_model(named(chat, name).choices[0].id)]


def asked(chat: DocumentChat, folder: Path) -> tuple[str, str]:
    """A document and a chat over it: (document, chat)."""
    document = chat.library.add_document(write(folder, words=20)).id
    return document, finish(chat.ask("who?", documents=[document], generation=SHORT)).chat


# --- what is found


def test_everything_is_listed_with_the_reason_that_keeps_it_from_use(home: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(home / "models" / "beta", home / "models" / "broken")
    cut(broken / "model.safetensors", 0.5)
    (home / "models" / "notes").mkdir()
    settings = Settings(home=home, model=str(home / "models" / "alpha"))
    found = {model.name: model for model in local_models(settings, Choice(settings.model).id)}
    assert list(found)[0] == "alpha" and found["alpha"].loaded and not found["beta"].loaded
    assert list(found)[-2:] == ["broken", "lectern-reader"] and "notes" not in found  # its base is not fetched yet
    assert found["lectern-small"].place != found["alpha"].place
    assert not found["broken"].usable and not found["broken"].choices
    assert "cut short" in found["broken"].reasons[0]
    assert found["alpha"].facts["trained length"] == "64 tokens" and found["alpha"].size_bytes > 100_000


def test_a_checkpoint_is_looked_at_once_until_its_files_change(made: Path, tmp_path: Path, monkeypatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr("app.models.inspect.inspect", lambda path, look=inspect: looked.append(path.name) or look(path))
    shutil.copytree(made / "beta", tmp_path / "home" / "models" / "mine")
    settings = Settings(home=tmp_path / "home")
    local_models(settings)
    seen = looked.count("mine")
    local_models(settings)
    assert seen == looked.count("mine") == 1
    config = tmp_path / "home" / "models" / "mine" / "config.json"
    config.write_text("{}", encoding="utf-8")
    (mine,) = [model for model in local_models(settings) if model.name == "mine"]
    assert looked.count("mine") == 2 and not mine.usable


def test_an_adapter_is_offered_on_the_base_that_it_names_else_on_those_it_fits(home: Path, made: Path) -> None:
    settings = Settings(home=home)
    (tuned,) = [model for model in local_models(settings) if model.name == "tuned"]
    assert [(choice.base, choice.adapter) for choice in tuned.choices] == [("alpha", str(home / "models" / "tuned"))]
    config = home / "models" / "tuned" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "gone/away"}))
    (tuned,) = [model for model in local_models(settings) if model.name == "tuned"]
    assert tuned.usable and {choice.base for choice in tuned.choices} == {"alpha", "beta"}  # not lectern-small
    for name in ("alpha", "beta"):
        shutil.rmtree(home / "models" / name)
    (tuned,) = [model for model in local_models(settings) if model.name == "tuned"]
    assert not tuned.usable and "gone/away" in tuned.reasons[0] and not tuned.choices


def test_folders_are_added_kept_and_removed(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, words in (("", "no folder given"), (str(tmp_path / "no"), "no such folder"), (str(empty), "holds no")):
        with pytest.raises(InputError, match=words):
            add_folder(home, folder)
    assert sorted(add_folder(home, f" {made} ")) == ["alpha", "beta", "tuned"]
    assert add_folder(home, str(made / "alpha")) == ["alpha"]
    assert KnownModels(home).folders == [str(made), str(made / "alpha")]
    names = [model.name for model in local_models(Settings(home=home))]
    assert names.count("alpha") == 1  # found twice, listed once
    remove_folder(home, str(made))
    with pytest.raises(InputError, match="not among the added folders"):
        remove_folder(home, str(made))
    assert "beta" not in [model.name for model in local_models(Settings(home=home))]
    assert (made / "beta" / "config.json").exists()


def test_models_of_the_hub_cache_are_listed_under_their_id(made: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--some--model-1" / "snapshots" / "abc"
    shutil.copytree(made / "alpha", snapshot)
    refs = tmp_path / "hub" / "models--some--model-1" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    (tmp_path / "hub" / "models--half--fetched").mkdir()
    assert list(cached()) == [("some/model-1", snapshot)]
    (model,) = [model for model in local_models(Settings(home=tmp_path / "home")) if model.name == "some/model-1"]
    assert model.choices[0].model == "some/model-1" and model.usable


def test_a_damaged_note_of_models_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text("{half")
    known = KnownModels(tmp_path)
    assert known.folders == [] and known.loaded == {}
    known.digests = {"a 1 2": "x", "a 1 3": "y"}
    known.save()
    assert KnownModels(tmp_path).digests == {"a 1 3": "y"}  # of each file the last


# --- the exchange


def test_the_new_model_answers_and_nothing_of_the_old_one_stays_in_memory(chat: DocumentChat, tmp_path: Path) -> None:
    document, key = asked(chat, tmp_path)
    chat.model.engine_under("streaming")
    old = [weakref.ref(chat.model.engine()), weakref.ref(chat.model.engine().model), weakref.ref(chat.model.sessions())]
    old.append(weakref.ref(chat.model.engine_under("streaming")))
    steps = load(chat, "beta")
    assert steps[0] == "looking at its files" and "loading its weights" in steps
    assert [ref() for ref in old] == [None] * 4
    assert chat.model.model_state().name == "beta" and named(chat, "beta").loaded
    assert (
        chat.library.documents()[0].state == "new"
        and chat.model.engine_under("streaming").model is chat.model.engine().model
    )
    done = finish(chat.ask("and?", chat=key, generation=SHORT))
    assert done.stats.model == "beta" and done.stats.tokens_read > chat.library.document(document).tokens
    assert "other weights" in done.stats.note
    assert [m.stats.get("model") for m in chat.saved.messages(key) if m.role == "assistant"] == ["alpha", "beta"]
    assert chat.saved.chat(key).model == "beta"


def test_going_back_reads_nothing_again(chat: DocumentChat, tmp_path: Path) -> None:
    document, key = asked(chat, tmp_path)
    assert chat.shelf.other_models() == {}
    load(chat, "beta")
    other = chat.shelf.other_model(key)
    assert (other.name, other.loaded) == ("alpha", "beta") and other.seconds > 0
    assert other.tokens > chat.store.documents(chat.store.tails()[key][0])[0].tokens > 0
    counts = {model.name: (model.documents, model.chats) for model in chat.shelf.models()}
    assert counts["alpha"] == (1, 1) and counts["beta"] == (0, 0)
    list(chat.model.switch_model(other.choice))
    assert chat.shelf.other_model(key) is None
    done = finish(chat.ask("and?", chat=key, generation=SHORT))
    assert not done.stats.note and done.stats.tokens_read < 40
    assert done.stats.tokens_reused > chat.library.document(document).tokens


def test_an_unloaded_model_is_loaded_when_it_is_needed(chat: DocumentChat, tmp_path: Path) -> None:
    _, key = asked(chat, tmp_path)
    assert named(chat, "beta").fit.fits and named(chat, "beta").fit.tokens_per_s > 0
    assert named(chat, "alpha").fit is None, "it is loaded"
    assert all(offer.fit.tokens_per_s > 0 for offer in chat.shelf.offers())
    chat.model.unload_model()
    assert chat.model.model_state().state == "unloaded" and chat.shelf.offers() == []
    done = finish(chat.ask("and?", chat=key, generation=SHORT))
    assert chat.model.model_state().state == "ready" and not done.stats.note and done.stats.tokens_read < 40


def test_a_memory_of_files_that_changed_offers_no_way_back(chat: DocumentChat, home: Path, tmp_path: Path) -> None:
    _, key = asked(chat, tmp_path)
    load(chat, "beta")
    save_checkpoint(home / "models" / "alpha", 3)
    other = chat.shelf.other_model(key)
    assert other.name == "alpha" and other.choice == ""


def test_an_adapter_is_loaded_on_its_base(chat: DocumentChat, tmp_path: Path) -> None:
    _, key = asked(chat, tmp_path)
    load(chat, "tuned")
    assert chat.model.model_state().name == "alpha + tuned" and named(chat, "tuned").loaded
    assert not named(chat, "alpha").loaded and chat.shelf.other_model(key).name == "alpha"


def test_passages_of_another_models_answer_are_not_tested(chat: DocumentChat, tmp_path: Path) -> None:
    _, key = asked(chat, tmp_path)
    passage = chat.saved.messages(key)[1].evidence[0]
    load(chat, "beta")
    for events in (chat.removal(passage.id), chat.answer_without(passage.id)):
        with pytest.raises(InputError, match="given by alpha, and beta is loaded"):
            list(events)
    with pytest.raises(InputError, match="given by alpha, and beta is loaded"):
        list(chat.ask("who?", chat=key, without=passage.id))


def test_what_can_be_seen_before_loading_leaves_the_loaded_model_alone(chat: DocumentChat, home: Path) -> None:
    engine = chat.model.engine()
    choice = named(chat, "beta").choices[0].id
    chat.model.settings = replace(chat.settings, budget_tokens=128)
    with pytest.raises(LecternError, match="budget_tokens = 128: the model was trained .* 64.* alpha goes on"):
        list(chat.model.switch_model(choice))
    assert chat.model.engine() is engine
    (home / "models" / "beta" / "tokenizer.json").write_text("{}")
    with pytest.raises(NotFoundError, match="cannot be used any more"):
        list(chat.model.switch_model(choice))


@pytest.mark.parametrize("unforeseen", [False, True])
def test_a_load_that_fails_half_way_brings_the_old_model_back(
    chat: DocumentChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unforeseen: bool
) -> None:
    document, key = asked(chat, tmp_path)
    choice, load_engine = named(chat, "beta").choices[0].id, app.runtime.load.load_engine

    def failing(settings: Settings, *rest: object) -> object:
        if settings.model_name == "beta":
            raise MemoryError("no room") if unforeseen else ModelError("beta: needs 90.0 GiB")
        return load_engine(settings, *rest)

    monkeypatch.setattr(app.runtime.load, "load_engine", failing)
    with pytest.raises(ModelError, match="no room.* alpha goes on" if unforeseen else "90.0 GiB. alpha goes on"):
        list(chat.model.switch_model(choice))
    assert chat.model.model_state().name == "alpha" and chat.jobs.busy() is None
    assert (
        finish(chat.ask("and?", chat=key, generation=SHORT)).stats.tokens_reused
        > chat.library.document(document).tokens
    )


def test_when_neither_model_can_be_had_the_page_says_so_and_a_third_can_be_loaded(
    chat: DocumentChat, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.model.engine()
    choice, load_engine = named(chat, "beta").choices[0].id, app.runtime.load.load_engine

    def failing(settings: Settings, *rest: object) -> object:
        raise ModelError(f"{settings.model_name}: no room")

    monkeypatch.setattr(app.runtime.load, "load_engine", failing)
    with pytest.raises(ModelError, match="beta: no room. alpha is not loaded either: alpha: no room"):
        list(chat.model.switch_model(choice))
    assert chat.model.model_state().state == "failed" and chat.shelf.loaded_choice() == ""
    with pytest.raises(ModelError, match="alpha: no room"):
        chat.model.engine()
    monkeypatch.setattr(app.runtime.load, "load_engine", load_engine)
    list(chat.model.switch_model(choice))
    assert chat.model.model_state().state == "ready" and chat.model.engine().name == "beta"


def test_a_model_that_computes_nan_is_not_taken(chat: DocumentChat, home: Path) -> None:
    import torch

    chat.model.engine()
    bad = tiny.model(5)
    with torch.no_grad():
        bad.model.norm.weight[0] = float("nan")
    bad.save_pretrained(home / "models" / "beta")
    with pytest.raises(ModelError, match="not numbers.* alpha goes on"):
        load(chat, "beta")
    assert chat.model.engine().name == "alpha"


def test_nothing_is_exchanged_while_something_runs(chat: DocumentChat, tmp_path: Path) -> None:
    choice = named(chat, "beta").choices[0].id
    document = chat.library.add_document(write(tmp_path, words=20)).id
    events = chat.ask("who?", documents=[document], generation=SHORT)
    next(events)
    with pytest.raises(LecternError, match="busy: answering"):
        list(chat.model.switch_model(choice))
    events.close()
    steps = chat.model.switch_model(choice)
    next(steps)
    with pytest.raises(LecternError, match="busy: loading beta"):
        list(chat.read(document))
    steps.close()  # the page is closed: the exchange is finished all the same
    assert chat.model.model_state().name == "beta" and chat.jobs.busy() is None


def test_fingerprints_are_kept_over_a_restart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=home, model=str(home / "models" / "alpha"), device="cpu", threads=1)
    chat = DocumentChat.open(settings, load=False)
    recipe = chat.model.engine().recipe
    chat.close()
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
    chat = DocumentChat.open(settings, load=False)
    assert chat.model.engine().recipe == recipe
    chat.close()


def test_a_loaded_model_is_spared_the_collector_until_the_chat_is_closed(home: Path) -> None:
    gc.unfreeze()
    chat = DocumentChat.open(Settings(home=home, model=str(home / "models" / "alpha"), device="cpu"), load=False)
    chat.model.engine()
    assert gc.get_freeze_count() > 100_000
    chat.close()
    assert gc.get_freeze_count() == 0


def test_the_first_try_measures_the_speed() -> None:
    engine = tiny.engine()
    first_try(engine)
    assert engine.tokens_per_s > 0
