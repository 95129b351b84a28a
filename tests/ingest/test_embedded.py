"""Data inside text: what is left out of it, line by line, and what stays."""

import base64
import json
import random

import pytest

from app.ingest.codebase import load_code_file, load_codebase
from app.ingest.embedded import without_data
from tests.ingest.test_codebase import write

PICTURE = base64.b64encode(random.Random(7).randbytes(6000)).decode()
WRAPPED = "\n".join(PICTURE[at : at + 76] for at in range(0, len(PICTURE), 76))
PROSE = "The harbour bell rings at noon, and the boats come home before the tide turns again. " * 40


def test_a_run_of_base64_is_left_out_and_named():
    text = f"a {{\n  background: url(data:image/png;base64,{PICTURE});\n}}\n"
    shorter, found = without_data(text)
    assert shorter == "a {\n  background: url(data:image/png;base64,[embedded data left out: 8,000 characters]);\n}\n"
    assert found == [("2", 8000 - len("[embedded data left out: 8,000 characters]"))]


def test_lines_of_base64_leave_the_line_numbers_as_they_are():
    shorter, found = without_data(f'KEY = """\n{WRAPPED}\n"""\nx = 1\n')
    lines = shorter.split("\n")
    assert lines.index("x = 1") == 2 + WRAPPED.count("\n") + 1
    assert found == [("2-106", 7980)]  # a last, shorter line stays


def test_lists_of_digests_are_data():
    hashes = "".join(f"    --hash=sha256:{i:064x} \\\n" for i in range(20))
    shorter, found = without_data(f"numpy==2.4 \\\n{hashes}torch==2.13\n")
    assert "numpy==2.4" in shorter and "torch==2.13" in shorter and "sha256" not in shorter
    assert found[0][0] == "2-21"


@pytest.mark.parametrize("text", [
    PROSE, "-" * 3000, "x = 1\n" * 500, "a" * 5000, "one_long_name_" * 60, f"# {PROSE}\nx = 1\n",
    "\n".join(f"some/path/to/a/file/that/is/long/number/of/{'x' * i}" for i in range(20)),
])  # fmt: skip
def test_what_is_no_data_stays(text):
    assert without_data(text, prose=True) == (text, [])


def test_minified_lines_of_a_source_file_are_left_out_one_by_one(tmp_path):
    source = "function open() { return 1; }\n" * 100 + "var t={" + "a:1,b:2," * 300 + "};\n" + "function shut() {}\n"
    write(tmp_path, {"a.js": source, "b.js": "var t={" + "a:1,b:2," * 300 + "};\n", "c.py": f"s = '''{PICTURE}'''\n"})
    document = load_codebase(tmp_path, "p")
    (part,) = document.parts
    assert part.label == "a.js" and part.text.endswith("characters]\nfunction shut() {}\n")
    assert {item.name: item.reason for item in document.skipped} == {
        "a.js:101": "embedded data (2,367 characters)", "b.js": "minified", "c.py": "embedded data alone",
    }  # fmt: skip


def test_a_single_file_keeps_its_long_lines_but_not_its_pictures(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"names": [f"name {i}" for i in range(300)], "picture": PICTURE}))
    document = load_code_file(path, "data.json")
    assert "name 299" in document.parts[0].text and PICTURE not in document.parts[0].text
    assert document.skipped[0].name == "data.json:1"


def notebook(*cells):
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells)})


def code(source, picture=None):
    outputs = [{"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}}] if picture else []
    return {"cell_type": "code", "source": source, "outputs": outputs, "metadata": {}, "execution_count": 1}


def test_a_notebook_in_a_repository_is_read_by_its_cells(tmp_path):
    write(tmp_path, {
        "a.py": "x = 1\n", "nb/study.ipynb": notebook(
            {"cell_type": "markdown", "source": "# The tide\nAbout tides.", "metadata": {}}, code("tide = 4", PICTURE),
        ), "nb/large.ipynb": notebook(code("y = 2", PICTURE * 200)), "nb/broken.ipynb": "{}",
    })  # fmt: skip
    document = load_codebase(tmp_path, "p")
    parts = {part.label: part for part in document.parts}
    assert list(parts) == ["a.py", "nb/large.ipynb", "nb/study.ipynb"]
    study = parts["nb/study.ipynb"]
    head = "nb/study.ipynb (notebook)\n"
    assert study.text == head + "# The tide\nAbout tides.\n\ntide = 4\n" and study.first_line is None
    assert study.places == ((0, "nb/study.ipynb, cell 1"), (study.text.index("tide = 4"), "nb/study.ipynb, cell 2"))
    assert parts["nb/large.ipynb"].text.endswith("y = 2\n")
    reasons = {item.name: item.reason for item in document.skipped}
    assert reasons["nb/broken.ipynb"].startswith("no notebook (not a notebook, it has no")
    assert reasons["nb/study.ipynb"] == "left out of its outputs and cells: 1 picture"


def test_a_long_notebook_is_several_parts_with_the_right_cells(tmp_path, monkeypatch):
    monkeypatch.setattr("app.ingest.codebase.PART_CHARS", 100)
    write(tmp_path, {"n.ipynb": notebook(*(code(f"value_{i} = 'some text here'") for i in range(12)))})
    for part in load_codebase(tmp_path, "p").parts:
        for start, label in part.places:
            number = int(label.rpartition(" ")[2])
            ahead = part.text[start : start + 60]
            assert f"value_{number - 1} " in ahead or start == 0
