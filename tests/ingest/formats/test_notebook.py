import json

import pytest

from app.errors import InputError
from app.ingest.load import load_document


def written(path, cells, **more):
    path.write_text(json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {}, **more}), "utf-8")
    return path


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def test_sources_and_what_was_printed(tmp_path):
    picture = {"output_type": "display_data", "data": {"image/png": "QUJD" * 9000, "text/plain": "<Figure size 1x1>"}}
    frame = {"output_type": "execute_result", "data": {"text/html": ["<b>sum</b>"], "text/plain": ["   a\n", "0  7"]}}
    stream = {"output_type": "stream", "name": "stdout", "text": ["  1%\r", " 99%\rdone\n"]}
    error = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[0;31mValueError\x1b[0m: no"]}
    markdown = {
        "cell_type": "markdown",
        "source": ["# Tide\n", "Grüße ![p](attachment:a.png)"],
        "attachments": {"a.png": {}},
    }
    cells = [
        markdown,
        code("x = 1\nif x:\n    y", stream, picture, frame, error),
        code(""),
        {"cell_type": "raw", "source": "raw"},
    ]
    document = load_document(written(tmp_path / "a.ipynb", cells))
    assert document.kind == "notebook"
    assert [(part.label, part.chapter, part.text) for part in document.parts] == [
        ("cell 1", "Tide", "# Tide\nGrüße ![p](attachment:a.png)"),
        ("cell 2", "Tide", "x = 1\nif x:\n    y\n\ndone\n\n<Figure size 1x1>\n\n   a\n0  7\n\nValueError: no"),
        ("cell 4", "Tide", "raw"),
    ]
    assert document.notes == ("left out of its outputs and cells: 1 attachment, 1 picture",)


def test_markdown_results_are_read_where_the_plain_form_only_names_a_class(tmp_path):
    data = {"text/plain": "<IPython.core.display.Markdown object>", "text/markdown": "**bold** result"}
    document = load_document(written(tmp_path / "a.ipynb", [code("m", {"output_type": "display_data", "data": data})]))
    assert document.parts[0].text == "m\n\n**bold** result"


def test_format_3(tmp_path):
    old = {
        "cell_type": "code",
        "input": ["print(1)"],
        "outputs": [{"output_type": "pyout", "text": ["1"], "png": "QUJD"}],
    }
    heading = {"cell_type": "heading", "level": 2, "source": ["Old"]}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"worksheets": [{"cells": [heading, old]}], "nbformat": 3}))
    assert [(part.text, part.chapter) for part in load_document(path).parts] == [
        ("## Old", "Old"),
        ("print(1)\n\n1", "Old"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cells": [], "nbformat": 4}', r"this notebook has no cells \(0\)"),
        ('{"nbformat": 4}', 'has no "cells"'),
        ('{"cells": [{"cell_type"', "not a notebook or cut off"),
        ("[" * 100_000, "nested too deep|not a notebook"),
        ('{"cells": [{"cell_type": "code", "source": ""}]}', "this notebook holds no text"),
    ],
)
def test_what_is_no_notebook(text, message, tmp_path):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(InputError, match=rf"^a\.ipynb: .*({message})"):
        load_document(tmp_path / "a.ipynb")


def test_a_result_that_is_html_alone_is_read(tmp_path):
    table = {"output_type": "display_data", "data": {"text/html": ["<table><tr><td>tide</td>", "<td>7.1</td></table>"]}}
    empty = {"output_type": "display_data", "data": {"text/html": ""}}
    (part,) = load_document(written(tmp_path / "a.ipynb", [code("show()", table, empty)])).parts
    assert part.text == "show()\n\ntide | 7.1"
