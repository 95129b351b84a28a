"""Looking up by words in a chat: which regions are offered, and what an answer says of them."""

from types import SimpleNamespace

import pytest

from app.chat import DocumentChat, lookup
from app.memory.config import GenerationConfig
from app.records import Done
from app.settings import Settings
from app.store.passages import Found
from tests import tiny
from tests.chat.attached import SIZE, attach

SHORT = GenerationConfig(max_new_tokens=4)
FACT = "Captain Orlov sailed for Malta. "


@pytest.fixture
def chat(tmp_path):
    opened = DocumentChat.open(Settings(home=tmp_path / "home"), engine=tiny.engine())
    opened.model.engine().draft_tokens, opened.model.engine().lookup = 3, "words"
    yield opened
    opened.close()


def add(chat, tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return chat.library.add_document(path).id


def ask(chat, question, **options) -> Done:
    *_, done = chat.ask(question, generation=SHORT, **options)
    return done


def test_an_answer_sees_the_passage_that_has_the_words_of_its_question(chat, tmp_path):
    filler = "nothing much was said that day. " * 8
    add(chat, tmp_path, "other.txt", FACT * 9)  # not attached
    id = add(chat, tmp_path, "book.txt", 2 * filler + FACT + filler)
    done = ask(chat, "Who sailed to Malta?", documents=[id])
    by = chat.model.sessions().session.cache.evidence.chosen.found_by()
    assert done.stats.second_look == len(by) > 1 and set(by.values()) == {"attention", "words"}
    for item in done.evidence:
        found = {by[region] for _, region in item.regions}
        assert {item.found_by} == found if len(found) == 1 else item.found_by == "both"
    seen = [item.found_by for item in chat.saved.messages(done.chat)[-1].evidence]
    assert seen == [item.found_by for item in done.evidence]


def test_words_look_only_where_the_user_lets_them(chat, tmp_path):
    ids = [add(chat, tmp_path, f"{name}.txt", FACT + f"{name} " * 60) for name in ("aa", "bb")]
    done = ask(chat, "Who sailed to Malta?", documents=ids, mute=["aa"])
    assert {item.document for item in done.evidence} == {ids[1]}
    sessions = chat.model.sessions()
    regions = sessions.offered(sessions.session, [], "Who sailed to Malta?")
    first = sessions.reader.attached(sessions.session.documents)[1].first_region
    assert regions and min(map(min, regions)) >= first
    chat.model.engine().lookup = "attention"
    assert sessions.offered(sessions.session, [], "Who sailed to Malta?") == []


def test_a_passage_within_one_region_is_offered_where_it_may_be_seen():
    parts, memory, tokenizer = attach(["x" * (2 * SIZE), "abc", "y" * (2 * SIZE)], first=5)
    found = [Found("dBook", 2, 0, 3), Found("dBook", 1, 0, 2 * SIZE)]
    kept = SimpleNamespace(part=lambda _, index: parts[index - 1], find_passages=lambda *_: found)
    short = 5 + memory.text.spans[1].token_start // SIZE
    options = {"region_tokens": SIZE, "count": 9}

    def offered(visible):
        return lookup.offered("abc?", [], [memory], kept, tokenizer, visible=visible, **options)

    assert offered(None)[0] == [short]
    assert offered([region == short for region in range(5 + memory.regions)]) == [[short]]
    assert offered([region < short for region in range(5 + memory.regions)]) == [[5, 6]]
