"""What git's rule files say: attributes, the user's own ignore file, worktrees, and rules that cost too much."""

import time

import pytest

from app.ingest.codebase import load_codebase
from app.ingest.gitrules import attribute_rules, ignore_rules
from app.ingest.load import load_document
from tests.ingest.test_codebase import write


def read(folder):
    document = load_codebase(folder, "p")
    skipped = {item.name: item.reason for item in document.skipped}
    return [part.label for part in document.parts], skipped, document.notes


def test_generated_and_vendored_files_are_left_out_and_listed(tmp_path):
    labels, skipped, _ = read(write(tmp_path, {
        ".gitattributes": "*.pb.go linguist-generated\n/lib/** linguist-vendored=true -diff\n"
                          "lib/own.go -linguist-vendored\ndocs linguist-vendored\n*.txt text\n"
                          '"a b.go"\tlinguist-generated=1\n[attr]made linguist-generated\n# x linguist-generated\n',
        "a.pb.go": "x", "lib/b.go": "x", "lib/own.go": "y", "docs/c.go": "z", "a b.go": "x", "n.txt": "n",
        "deep/.gitattributes": "*.pb.go linguist-generated=false\nd.go linguist-generated\n", "deep/a.pb.go": "y",
        "deep/d.go": "x",
    }))  # fmt: skip
    assert labels == [
        ".gitattributes", "n.txt", "deep/.gitattributes", "deep/a.pb.go", "docs/c.go", "lib/own.go",
    ]  # fmt: skip
    assert skipped == {
        "a.pb.go": "generated (.gitattributes)", "a b.go": "generated (.gitattributes)",
        "deep/d.go": "generated (.gitattributes)", "lib/b.go": "vendored (.gitattributes)",
    }  # fmt: skip


def test_attributes_of_the_repository_hold_for_a_folder_inside_it(tmp_path):
    write(tmp_path, {"r/.git/info/attributes": "x.go linguist-generated\n", "r/src/x.go": "x", "r/src/y.go": "y",
                     "r/.gitattributes": "src/z.go linguist-vendored\n", "r/src/z.go": "z"})  # fmt: skip
    labels, skipped, _ = read(tmp_path / "r" / "src")
    assert labels == ["y.go"] and set(skipped) == {"x.go", "z.go"}


@pytest.mark.parametrize("config", ["[core]\n\teditor = vi\n\texcludesFile = ~/mine\n", None])
def test_the_users_own_ignore_file_holds_in_repositories(tmp_path, monkeypatch, config):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    files = {"home/mine": "*.own\n", "home/.gitconfig": config} if config else {"home/.config/git/ignore": "*.own\n"}
    write(tmp_path, {**files, "r/.git/HEAD": "ref", "r/.gitignore": "!kept.own\n", "r/a.own": "x", "r/kept.own": "y",
                     "r/a.py": "z", "plain/a.own": "read: no repository"})  # fmt: skip
    labels, skipped, _ = read(tmp_path / "r")
    assert labels == [".gitignore", "a.py", "kept.own"] and skipped["a.own"] == ".gitignore"
    assert read(tmp_path / "plain")[0] == ["a.own"]


def test_the_rules_of_a_worktree_lie_where_its_git_file_says(tmp_path):
    write(tmp_path, {
        "main/.git/info/exclude": "*.mine\n", "main/.git/worktrees/w/commondir": "../..\n",
        "w/.git": f"gitdir: {tmp_path}/main/.git/worktrees/w\n", "w/a.mine": "x", "w/a.py": "y",
    })  # fmt: skip
    labels, skipped, _ = read(tmp_path / "w")
    assert labels == ["a.py"] and skipped == {"a.mine": ".gitignore", ".git": "git's own file"}


def test_what_git_ignores_is_read_only_when_chosen_and_then_said(tmp_path):
    write(tmp_path, {"r/.git/HEAD": "ref", "r/.gitignore": "out/\n*.key.txt\n", "r/out/a.py": "x",
                     "r/out/b.key.txt": "private", "r/my.key.txt": "private", "r/c.txt": "text"})  # fmt: skip
    labels, skipped, notes = read(tmp_path / "r" / "out")
    assert labels == ["a.py"] and skipped == {"b.key.txt": ".gitignore"}
    assert notes == ("git ignores this folder; it was read because you chose it",)
    said = "git ignores this file; it was read because you chose it"
    assert load_document(tmp_path / "r" / "my.key.txt").notes == (said,)
    assert load_document(tmp_path / "r" / "out" / "a.py").notes == (said,)
    assert load_document(tmp_path / "r" / "my.key.txt", name="my.key.txt").notes == ()  # an upload: a copy elsewhere
    assert load_document(tmp_path / "r" / "c.txt").notes == ()


def test_rules_with_many_stars_take_no_time():
    rules = ignore_rules("*a*a*a*a*a*a*a*a*b\n[!x]*a?a*a?a*a?a*b\n*.log\n!*b*c*d.log\n")
    started = time.process_time()
    assert rules.check("a" * 200) is None
    assert time.process_time() - started < 5
    assert rules.check("aaaaaaaab") is True and rules.check("abcd.log") is False and rules.check("abc.log") is True


def test_rules_that_would_take_too_long_are_not_used_and_said(tmp_path):
    rules = "a/" + "**/b/" * 9 + "c\n" + "x" * 2000 + "\n*.log\n"
    _, _, notes = read(write(tmp_path, {".gitignore": rules, "a.py": "x"}))
    (note,) = notes
    assert note.startswith('ignore rules that would take too long to match were not used: "a/**/b/**/b/')
    assert note.count("of .gitignore") == 2


@pytest.mark.parametrize(
    ("rule", "path", "named"),
    [("*a*b*c", "xaxbxc", True), ("*a*b*c", "xaxbxcx", None), ("*a*b*c", "x/abc/y", True), ("a*/b", "ax/b", True),
     ("*?a*", "a", None), ("*?a*", "ba", True), ("*[ab]*[cd]*e", "xacde", True), ("*a*ab*b", "aabb", True),
     (r"*\(a*b*", "x(ayb", True), ("*ab*ab*ab", "abab", None), ("*/a*b*c/", "q/abc/", True)],
)  # fmt: skip
def test_stars(rule, path, named):
    assert ignore_rules(rule).check(path) is named


def test_attributes_do_not_reach_into_folders():
    rules = attribute_rules("vendor linguist-vendored\n", "linguist-vendored")
    assert rules.check_itself("vendor") is True and rules.check_itself("vendor/a.go") is None
