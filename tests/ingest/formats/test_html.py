import pytest
from format_maker import label_of, words

from app.errors import InputError
from app.ingest.load import load_document


@pytest.fixture
def read(tmp_path):
    def read(body, name="a.html", encoding="utf-8"):
        (tmp_path / name).write_bytes(body.encode(encoding))
        return load_document(tmp_path / name)

    return read


def text(document):
    return "\n\n".join(part.text for part in document.parts)


def test_the_main_part_in_order(read):
    document = read(
        """<!doctype html><html><head><title>A Page</title><style>p{}</style></head><body><header>Banner</header>
        <nav>Menu</nav><main><h1>Bells<a class="headerlink" href="#">¶</a></h1><p>First  <b>pa</b>ra&shy;graph<br>next
        line.
        <h2>Towers</h2><div>Loose text<p>inner</p>more</div><p hidden>unseen</p><p style="display:none">unseen</p>
        <script>unseen</script><figure><img alt="A bell" src="x"><figcaption>Cast in 1801</figcaption></figure>
        <figure><img alt="Same words"><figcaption>Same words</figcaption></figure></main><footer>Foot</footer></body>"""
    )
    assert (document.title, document.kind) == ("A Page", "web")
    assert text(document) == (
        "Bells\n\nFirst paragraph\nnext line.\n\nTowers\n\nLoose text\n\ninner\n\nmore\n\n[A bell]\n\nCast in 1801\n\n"
        "Same words"
    )
    assert label_of(document, "inner") == "Towers, paragraph 2"


def test_without_a_main_part_all_but_what_stands_around(read):
    body = "<header>Banner</header><div role=navigation>Menu</div><p>text<aside>box</aside><footer>Foot</footer>"
    assert words(read(f"<html><body>{body}</body></html>")) == ["text", "box"]
    assert (
        words(read("<main></main><p>the words stand outside the main part"))
        == "the words stand outside the main part".split()
    )


def test_lists_tables_code_and_quotes(read):
    document = read(
        """<main><ol start="3"><li>three<ul><li>inner</li></ul></li><li value="7">seven</li><li>eight</li></ol>
        <ol type="a"><li>letter</li></ol><ol type="I" reversed><li>two</li><li>one</li></ol><p>between</p>
        <table><caption>Tides</caption><thead><tr><th>Port</th><th>High<br>water</th></tr></thead>
        <tbody><tr><td>Brest</td><td><p>7.1</p><p>m</p></td></tr><tr><td colspan=2>none</td></tr></tbody></table>
        <pre><code>def f(x):
    return  x
</code></pre><p>H<sub>2</sub>O is 10<sup>2</sup>, a <q>quote</q> <ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby></p>
        <dl><dt>term</dt><dd>meaning</dd></dl></main>"""
    )
    assert text(document) == (
        "3. three\n  - inner\n7. seven\n8. eight\n\na. letter\n\nII. two\nI. one\n\nbetween\n\nTides\n\n"
        "Port | High water\nBrest | 7.1 m\nnone\n\ndef f(x):\n    return  x\n\nH2O is 10², a “quote” 漢(kan)\n\n"
        "term\n\nmeaning"
    )


def test_numbered_listings_lose_their_numbers_only(read):
    document = read(
        """<main><table class="highlighttable"><tr><td class="linenos"><pre>1\n2</pre></td><td class="code"><pre>
<span id="l1"></span><span class="linenos">1</span>if a:\n<a id="l2"></a>    b()</pre></td></tr></table></main>"""
    )
    assert text(document) == "if a:\n    b()"


@pytest.mark.parametrize(
    "notes",
    [
        '<aside id="n1" role="doc-footnote"><p>1. Said twice.</p></aside>',
        '<section class="footnotes"><ol><li id="n1"><p>Said twice. <a href="#r1">↩</a></p></li></ol></section>',
        '<div><p id="n1"><a href="#r1">[1]</a> Said twice.</p></div>',
    ],
)
def test_notes_stand_at_their_place_once(notes, read):
    document = read(f'<main><p>Bell<sup id="r1"><a href="#n1">1</a></sup> rings.</p><p>After.</p>{notes}</main>')
    assert text(document) == "Bell[1] rings.\n[1] Said twice.\n\nAfter."


def test_a_link_to_a_heading_is_no_note(read):
    document = read('<main><p id="t"><a href="#s">1</a></p><h2 id="s">Bells <a href="#t">up</a></h2><p>text</p></main>')
    assert text(document) == "1\n\nBells up\n\ntext"


def test_formulas_are_latex(read):
    document = read(
        """<main><p>so <math><mfrac><mi>a</mi><mi>b</mi></mfrac></math> and
        <span class="katex"><span class="katex-mathml">
        <math><semantics><mi>x</mi><annotation encoding="application/x-tex">x^2</annotation></semantics></math></span>
        <span class="katex-html" aria-hidden="true">x2</span></span><script type="math/tex">y_1</script></p></main>"""
    )
    assert text(document) == r"so $\frac{a}{b}$ and $x^2$ $y_1$"


def test_shadow_roots_are_unpacked(read):
    document = read(
        """<main><my-card>light <b slot="top">named</b><template shadowrootmode="open">
        <p>before <slot name="top"></slot></p>
        <p><slot></slot>after</p><slot name="none">own</slot></template></my-card><template>unseen</template></main>"""
    )
    assert words(document) == "before named light after own".split()


@pytest.mark.parametrize(
    ("head", "encoding"),
    [('<meta charset="windows-1252">', "cp1252"),
     ('<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">', "koi8-r"),
     ("", "utf-8-sig"), ("", "utf-16"), ("<meta charset=utf-8>", "cp1252")],
)  # fmt: skip
def test_encodings(head, encoding, read):
    said = "Привет" if encoding == "koi8-r" else "Größe déjà façade"
    assert text(read(f"<html><head>{head}</head><body><p>{said}</p></body></html>", encoding=encoding)) == said


def test_a_page_by_its_content(read):
    document = read("<!-- saved -->\n<!DOCTYPE HTML><p>words", name="page.txt")
    assert document.kind == "web" and document.notes[0].startswith("its name ends in .txt, but it is a web page")
    assert read("<!doctype html><?php echo 1 ?>", name="page.php").kind == "code"


def test_deep_pages_are_read(read, child_process):
    assert words(read("<main>" + "<div>" * 1500 + "deep" + "</div>" * 1500 + "<p>after")) == ["deep", "after"]


def test_no_words(read):
    with pytest.raises(InputError, match=r"^a\.html: this web page holds no text"):
        read("<html><body><script>x</script></body></html>")


MHTML = """From: <Saved by Blink>
Subject: A page
MIME-Version: 1.0
Content-Type: multipart/related; type="text/html"; boundary="B"

--B
Content-Type: text/html
Content-ID: <f0@mhtml.blink>
Content-Transfer-Encoding: quoted-printable

<!DOCTYPE html><html><head><meta http-equiv=3D"Content-Type" content=3D"text/html; charset=3DUTF-8"><title>Saved</title>
</head><body><main><pre>line one
line=20two</pre><p>Gr=C3=B6=C3=9Fe</p><iframe src=3D"cid:f1@mhtml.blink"></iframe></main></body></html>
--B
Content-Type: image/png
Content-Transfer-Encoding: base64

QUJD
--B
Content-Type: text/html; charset=windows-1252
Content-ID: <f1@mhtml.blink>
Content-Transfer-Encoding: base64

PHA+ZnJhbWUg5Dwvcd4=
--B--
"""


@pytest.mark.parametrize("name", ["a.mhtml", "a"])
def test_saved_pages_with_their_frames(name, read):
    document = read(MHTML.replace("\n", "\r\n").replace("PHA+ZnJhbWUg5Dwvcd4=", "PHA+ZnJhbWUg5DwvcD4="), name=name)
    assert (document.title, document.kind) == ("Saved", "web")
    assert text(document) == "line one\nline two\n\nGröße\n\nframe ä"


def test_a_saved_page_without_a_page(read):
    with pytest.raises(InputError, match=r"^a\.mht: no web page in it"):
        read("MIME-Version: 1.0\nContent-Type: image/png\n\nx", name="a.mht")


def test_cells_stand_under_their_headers(read):
    rows = "<tr><th>A<th>B<th>C</tr><tr><td rowspan=2>r<td colspan=2>bc</tr><tr><td>b<td>c</tr><tr><td>1<td>2<td>3</tr>"
    odd = "<tr><td rowspan=0 colspan=x>e</tr>"
    assert text(read(f"<html><body><table>{rows}{odd}</table></body></html>")) == (
        "A | B | C\nr | bc\n| b | c\n1 | 2 | 3\ne"
    )


def test_elements_without_an_end_hold_nothing(read):
    page = "<p>Donau<wbr>dampf<wbr/>schiff <picture><source srcset=a><img alt=Ship></picture> sails<p>on"
    assert text(read(f"<html><body>{page}</body></html>")) == "Donaudampfschiff [Ship] sails\n\non"
