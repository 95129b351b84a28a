"""What is shown of Markdown that comes from a model, a document or another Lectern."""

import random
import re

import pytest
from markdown_it import MarkdownIt

from app import markdown

FOREIGN = "A <b onclick='x'>tag</b> & ![a picture](http://evil.example/x.png) <style>body{display:none}</style>"
CODE = {
    "fence": "```cpp\nmap<int,int> m; a && b;\n```",
    "tildes": "~~~cpp\nmap<int,int> m; a && b;\n~~~",
    "open fence": "x\n```\nmap<int,int> m; a && b;",
    "indented": "Use this:\n\n    map<int,int> m; a && b;\n\ndone.",
    "in a list": "- item\n\n      map<int,int> m; a && b;\n",
    "fence in a list": "1. item\n\n   ```\n   map<int,int> m; a && b;\n   ```\n",
    "in a quotation": "> ~~~\n> map<int,int> m; a && b;\n> ~~~\n",
    "inline": "the line `map<int,int> m; a && b;` is it",
    "double ticks": "the line ``map<int,int> m; a && b;`` is it",
}


def shown(html: str) -> str:
    """The text of HTML, as a browser shows it."""
    import html as entities

    return entities.unescape(re.sub(r"<[^>]*>", "", html))


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
def test_code_keeps_every_character(text: str) -> None:
    page = markdown.html(text)
    assert re.search(r"<code[^>]*>[^<]*map&lt;int,int&gt; m; a &amp;&amp; b;", page)
    assert markdown.source(text) == text + ("\n```" if text.startswith("x\n```") else "")


@pytest.mark.parametrize("text", [FOREIGN, f"- {FOREIGN}", f"> {FOREIGN}", f"# {FOREIGN}", f"<div>\n{FOREIGN}\n</div>"])
def test_html_and_pictures_are_shown_and_not_obeyed(text: str) -> None:
    page = markdown.html(text)
    assert not re.search(r"<(?:b|img|style|div(?! class=\"lt-md\"))\b", page)
    assert "<b onclick='x'>tag</b> & ![a picture](http://evil.example/x.png)" in shown(page)
    again = MarkdownIt("commonmark").render(markdown.source(text))
    assert not re.search(r"<(?:b|img|style|div)\b", again) and "<b onclick='x'>tag</b> &" in shown(again)


def test_links_lead_to_the_web_only() -> None:
    page = markdown.html("[a](https://example.org/) [b](javascript:alert) [c](file:///x) [d](/gradio_api/x) <data:x,y>")
    assert re.findall(r'href="([^"]*)"', page) == ["https://example.org/"] and "noopener noreferrer" in page


def test_entities_and_definitions_are_shown() -> None:
    assert "&lt; &copy; [a]: http://x.example" in shown(markdown.html("&lt; &copy;\n[a]: http://x.example")).replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    "text", ["self.__dict__ or __all__?", "3) a ~~b~~ *c*\n    # d < e && f\n1. x\n- y\n\n`g` | $h$"]
)
def test_plain_text_is_plain(text: str) -> None:
    assert shown(markdown.plain_html(text)) == text
    rendered = shown(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown.plain(text)))
    assert rendered.replace("\xa0", " ").split() == text.split()


def test_generated_text_has_no_html_in_exports() -> None:
    """Whatever comes together: a second parser, with HTML allowed, finds neither HTML nor a picture."""
    generator = random.Random(3)
    pieces = [
        "`",
        "``",
        "```\n",
        "~~~\n",
        "\n",
        "\n\n",
        "    ",
        "- ",
        "> ",
        "<b>",
        "![",
        "](x)",
        "\\",
        "a",
        " ",
        "<!--",
        "]",
        "1. ",
    ]
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for _ in range(2000):
        text = "".join(generator.choice(pieces) for _ in range(generator.randint(1, 14)))
        for made in (markdown.source(text), markdown.plain(text)):
            kinds = {child.type for token in parser.parse(made) for child in (token, *(token.children or ()))}
            assert not kinds & {"html_block", "html_inline", "image"}, (text, made)
        assert not re.search(r"<(?:b>|img|!--)", markdown.html(text)), text


@pytest.mark.parametrize(
    ("text", "display"),
    [
        (r"so $\frac{a}{b} < 1$ holds", "inline"),
        (r"so \(\frac{a}{b} < 1\) holds", "inline"),
        ("so\n\n$$\n\\frac{a}{b} < 1\n$$\n\nholds", "block"),
        ("so\n\n\\[\n\\frac{a}{b} < 1\n\\]\n\nholds", "block"),
    ],
)
def test_latex_is_shown_as_a_formula(text: str, display: str) -> None:
    page = markdown.html(text)
    assert re.search(rf'<math [^>]*display="{display}"', page)
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac><mo>&lt;</mo>" in page
    assert markdown.source(text).replace("&lt;", "<") == text


@pytest.mark.parametrize(
    "text",
    ["$5 and $6", "`$x$`", r"$\frac{$", r"\(\frac{\)", r"$\text{<b>x</b>}$", "${1+1} and US$ 3", f"${'{' * 900}$"],
)
def test_what_is_no_formula_stays_as_it_was_written(text: str) -> None:
    page = markdown.html(text)
    assert "<math" not in page and "<b>" not in page and shown(page).strip() == text.strip("`")


def test_a_formula_brings_no_link_and_no_style() -> None:
    page = markdown.html(r"$\href{http://x.example}{a} \color{red}{b} \style{position:fixed}{c} \class{d}{e}$")
    assert not re.search(r"href|style=|class=\"d|red", page.replace('class="lt-md"', ""))


def test_marks_stand_in_the_text_and_never_in_a_tag() -> None:
    marks = (10, "<i>1</i>"), (13, "<i>2</i>"), (99, "<i>3</i>")
    shown = markdown.html("It is **so.** <b>x</b> \ue0001\ue001", marks)
    assert "<strong>so<i>1</i>.<i>2</i></strong>" in shown
    assert "&lt;b&gt;" in shown and "\ufffd1\ufffd<i>3</i>" in shown and "\ue000" not in shown
    assert markdown.source("One. Two.", [(4, " [1]"), (9, " [2]")]) == "One. [1] Two. [2]"
    assert "<td>b.<i>1</i></td>" in markdown.html("| a |\n|---|\n| b. |", ((19, "<i>1</i>"),))
