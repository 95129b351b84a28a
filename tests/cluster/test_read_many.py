"""Which files are left to read, and what a worker makes of one: Ray is not needed for any of it."""

import os
import subprocess
import sys

import pytest

from app.chat import DocumentChat
from app.cluster import read_many
from app.errors import InputError
from app.settings import SMALL_MODEL, Settings
from tests.serving import ROOT


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "texts"
    (made / "more").mkdir(parents=True)
    (made / ".hidden").mkdir()
    for name in ("b.txt", "a.txt", "more/c.txt", ".hidden/d.txt", ".e.txt"):
        (made / name).write_text(f"{name} is about a lighthouse. " * 20)
    (made / "more" / "same as a.txt").write_bytes((made / "a.txt").read_bytes())
    return made


def test_files_of_a_folder(folder, tmp_path):
    names = [str(path.relative_to(folder)) for path in read_many.files(folder)]
    assert names == ["a.txt", "b.txt", "more/c.txt", "more/same as a.txt"]
    (tmp_path / "empty").mkdir()
    for wrong in (folder / "a.txt", tmp_path / "empty"):
        with pytest.raises(InputError, match="folder"):
            read_many.files(wrong)


def test_what_a_worker_read_is_done_under_its_recipe_alone(folder, tmp_path):
    settings = Settings(home=tmp_path / "home", model=str(SMALL_MODEL), threads=1)
    bundles = tmp_path / "home" / "bundles"
    bundles.mkdir(parents=True)
    paths = read_many.files(folder)
    worker = read_many.Worker(settings, bundles)
    recipe = worker.chat.model.engine().recipe
    assert read_many.left(paths, bundles, recipe) == paths[:3]  # the same bytes are read once
    name = read_many.bundle_name(paths[0])
    told = worker({"path": str(paths[0]), "name": name})
    assert told["error"] == "" and told["tokens"] > 50 and told["sent"] == b"" and worker.chat.library.documents() == []
    assert read_many.left(paths, bundles, recipe) == paths[1:3]
    assert read_many.left(paths, bundles, "another") == paths[:3]
    cut = bundles / read_many.bundle_name(paths[1])
    cut.write_bytes((bundles / name).read_bytes()[:-40])
    assert read_many.left(paths, bundles, recipe) == paths[1:3]
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    wrong = worker({"path": str(folder / "picture.png"), "name": "x.lectern"})
    assert "picture.png" in wrong["error"] and not (bundles / "x.lectern").exists()
    worker.close()
    assert list((tmp_path / "home" / read_many.SCRATCH).iterdir()) == []

    chat = DocumentChat.open(settings)
    try:
        for _ in range(2):
            read_many.collect(chat, bundles / name)
        (document,) = chat.library.documents()
        assert (document.state, document.tokens) == ("read", told["tokens"]) and chat.saved.chats() == []
        assert list(chat.ask("Who?", documents=[document.id]))[-1].stats.tokens_read < 40
        assert chat.library.add_document(paths[0]).id == document.id
    finally:
        chat.close()


def test_a_bundle_is_sent_where_the_folder_is_not_seen(folder, tmp_path):
    settings = Settings(home=tmp_path / "home", model=str(SMALL_MODEL), threads=1)
    worker = read_many.Worker(settings, tmp_path / "not here")
    told = worker({"path": str(folder / "a.txt"), "name": "a.lectern"})
    made = tmp_path / "a.lectern"
    made.write_bytes(told["sent"])
    assert read_many.made_under(made) == worker.chat.model.engine().recipe
    worker.close()


def test_over_ray_and_on_after_a_part(folder, tmp_path):
    pytest.importorskip("ray", reason="needs `setup --with ray`")
    command = [sys.executable, "-P", "-m", "app.cli", "read", "--ray", str(folder), "--workers", "2", "--json"]
    command += ["--home", str(tmp_path / "home"), "--model", str(SMALL_MODEL)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run() -> dict:
        import json

        answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=400)
        assert answer.returncode == 0, answer.stderr[-3000:]
        return json.loads(answer.stdout.splitlines()[-1])

    first = run()
    assert (first["files"], first["read"], first["documents"]) == (4, 3, 3) and first["tokens_read"] > 150
    (folder / "new.txt").write_text("Another story. " * 30)
    bundles = sorted((tmp_path / "home" / "bundles").iterdir())
    bundles[0].unlink()
    second = run()
    assert (second["files"], second["read"], second["documents"]) == (5, 2, 4)
    assert not (tmp_path / "home" / read_many.SCRATCH).exists()
