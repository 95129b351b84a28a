import zipfile

import pytest
from format_maker import label_of, words

from app.errors import InputError
from app.ingest.load import load_document

NAV = """<nav epub:type="toc"><ol><li><a href="one.xhtml">Chapter I</a>
<ol><li><a href="one.xhtml#s2">The Sea</a></li></ol></li><li><a href="two.xhtml">Chapter II</a></li></ol></nav>"""


def test_the_spine_orders_and_the_navigation_names_chapters(make_epub, child_process):
    path = make_epub(
        {
            "two.xhtml": "<h1>Two</h1><p>gamma</p>",
            "one.xhtml": 'loose<h1>One</h1><p>alpha</p><h2 id="s2">Sea</h2><p>beta</p>',
        },
        nav=NAV,
        spine=["one.xhtml", "two.xhtml"],
    )
    document = load_document(path)
    assert (document.title, document.kind) == ("The Made Book", "book")
    assert words(document) == "loose One alpha Sea beta Two gamma".split()
    assert [label_of(document, word) for word in ("alpha", "beta", "gamma")] == [
        "Chapter I, paragraph 2", "The Sea, paragraph 1", "Chapter II, paragraph 1",
    ]  # fmt: skip
    assert [part.chapter for part in document.parts] == ["Chapter I", "The Sea", "Chapter II"]


def test_documents_that_are_not_read_along_are_notes(make_epub):
    document = load_document(
        make_epub({"a.xhtml": "<p>main</p>", "n.xhtml": "<p>aside</p>"}, spine=["a.xhtml", "-n.xhtml"])
    )
    assert [(part.text, part.kind) for part in document.parts] == [("main", ""), ("aside", "notes")]


MARKED = """<p>front</p><span epub:type="pagebreak" id="p1" title="iv"/>
<p>alpha be<a id="p2" epub:type="pagebreak">v</a>ta gamma</p>"""
LISTED = """<nav epub:type="page-list"><ol><li><a href="a.xhtml#p1">4</a></li>
<li><a href="a.xhtml#p2">5</a></li></ol></nav>"""
NCX_PAGE = """<pageList><pageTarget><navLabel><text>44</text></navLabel>
<content src="a.xhtml#p2"/></pageTarget></pageList>"""


@pytest.mark.parametrize(
    ("more", "labels"),
    [
        ({}, ["paragraph 1", "page iv", "page v"]),
        ({"nav": LISTED}, ["paragraph 1", "page 4", "page 5"]),
        ({"ncx": NCX_PAGE}, ["paragraph 1", "paragraph 2", "page 44"]),
    ],
)  # fmt: skip
def test_printed_pages_from_the_list_or_else_the_marks(more, labels, make_epub):
    document = load_document(make_epub({"a.xhtml": MARKED}, **more))
    assert words(document) == "front alpha beta gamma".split()
    assert [label_of(document, word) for word in ("front", "alpha", "gamma")] == labels


def test_chapters_from_the_ncx_and_else_from_headings(make_epub):
    ncx = '<navMap><navPoint><navLabel><text>Toad</text></navLabel><content src="a.xhtml"/></navPoint></navMap>'
    body = {"a.xhtml": "<h1>Frog</h1><p>alpha</p>"}
    assert label_of(load_document(make_epub(body, ncx=ncx)), "alpha") == "Toad, paragraph 1"
    assert label_of(load_document(make_epub(body)), "alpha") == "Frog, paragraph 1"


def test_what_xml_may_hold(make_epub):
    doctype = '<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/x.dtd" [{}]>'
    body = '<html xmlns="http://www.w3.org/1999/xhtml"><body><p>a&nbsp;b&eacute; &mine; <![CDATA[x < y]]></p>'
    body += "<p>end</p></body></html>"
    path = make_epub({"a.xhtml": doctype.format('<!ENTITY mine "own word">') + body})
    assert load_document(path).parts[0].text == "a bé own word x < y\n\nend"


def test_not_well_formed_is_read_as_html_with_nothing_lost(make_epub):
    body = '<?xml version="1.0"?><html><head><title/><script src="a.js"/></head>'
    body += "<body><p>one<br>two <![CDATA[a < b]]><p>three</body></html>"
    assert load_document(make_epub({"a.xhtml": body})).parts[0].text == "one\ntwo a < b\n\nthree"


def test_entities_do_not_grow(make_epub):
    nested = '<!ENTITY a "lol"><!ENTITY b "&a;&a;"><!ENTITY c "&b;&b;">'
    body = f'<?xml version="1.0"?><!DOCTYPE html [{nested}<!ENTITY file SYSTEM "file:///etc/hostname">]>'
    body += '<html xmlns="http://www.w3.org/1999/xhtml"><body><p title="&c;">x&c;y&file;z</p></body></html>'
    assert load_document(make_epub({"a.xhtml": body})).parts[0].text == "xyz"


def test_protected_books_are_refused_and_hidden_fonts_are_not(make_epub):
    form = '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData>'
    form += '<e:EncryptionMethod Algorithm="{}"/><e:CipherData><e:CipherReference URI="{}"/></e:CipherData>'
    form += "</e:EncryptedData></encryption>"
    aes = form.format("http://www.w3.org/2001/04/xmlenc#aes256-cbc", "OPS/a.xhtml")
    with pytest.raises(InputError, match=r"^made\.epub: protected against copying \(DRM\)"):
        load_document(make_epub({"a.xhtml": "<p>x</p>"}, more={"META-INF/encryption.xml": aes}))
    font = form.format("http://www.idpf.org/2008/embedding", "OPS/f.otf")
    assert load_document(make_epub({"a.xhtml": "<p>x</p>"}, more={"META-INF/encryption.xml": font})).parts


def test_a_missing_document_is_listed(make_epub):
    path = make_epub({"a.xhtml": "<p>here</p>", "b.xhtml": "<p>gone</p>"})
    with zipfile.ZipFile(path) as package:
        members = {name: package.read(name) for name in package.namelist() if name != "OPS/b.xhtml"}
    with zipfile.ZipFile(path, "w") as package:
        for name, data in members.items():
            package.writestr(name, data)
    document = load_document(path)
    assert [(item.name, item.reason) for item in document.skipped] == [
        ("OPS/b.xhtml", "named in the reading order, but not in the file")
    ]


def test_wrong_files(make_epub, pack, tmp_path):
    good = make_epub({"a.xhtml": "<p>x</p>" * 2000})
    (tmp_path / "cut.epub").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "text.epub").write_text("just words")
    container = "<container><rootfile full-path='a.opf'/></container>"
    empty = {"META-INF/container.xml": container, "a.opf": "<package><manifest/><spine/></package>"}
    pack("spine.epub", {"mimetype": "application/epub+zip", **empty})
    pack("plain.epub", {"mimetype": "application/epub+zip", "a.txt": "x"})
    pack("many.epub", {"mimetype": "application/epub+zip", **{f"{i}": "" for i in range(20_001)}})
    for name, message in {
        "cut.epub": r"damaged or cut off",
        "text.epub": r"it starts with b'just wor'",
        "spine.epub": r"names no reading order \(its spine is empty\)",
        "plain.epub": r"no e-book",
        "many.epub": r"more than 20,000 files",
    }.items():
        with pytest.raises(InputError, match=rf"^{name}: .*{message}"):
            load_document(tmp_path / name)


def test_the_shared_books(shared_data):
    """Chapters, page labels and phrases of five published books."""
    found = {path.stem: load_document(path) for path in sorted((shared_data / "epub").glob("*.epub"))}
    text = {name: " ".join(" ".join(part.text for part in document.parts).split()) for name, document in found.items()}
    chapters = {
        name: list(dict.fromkeys(part.chapter for part in d.parts if part.chapter)) for name, d in found.items()
    }
    assert chapters["alice"][1:4] == ["Down The Rabbit-Hole", "The Pool Of Tears", "A Caucus-Race And A Long Tale"]
    assert len(chapters["alice"]) == 11 and "sitting by her sister on the bank" in text["alice"]
    assert [part.label for part in found["childrens-literature"].parts][1:3] == ["page 169", "page 170"]
    assert chapters["trees"] == ["Classification", "Morphology"]
    assert chapters["wasteland"][:2] == ["I. THE BURIAL OF THE DEAD", "II. A GAME OF CHESS"]
    assert "Son of man,[*] 20 [*] Line 20. Cf. Ezekiel 2:1." in text["wasteland"]
    assert "السرطان[1]. [1] لمزيد من المعلومات" in text["regime-anticancer-arabic"]


def test_one_form_of_what_has_several_is_read(make_epub):
    math = '<math xmlns="http://www.w3.org/1998/Math/MathML"><mi>x</mi></math>'
    forms = "<epub:switch><epub:case>{}</epub:case><epub:default><p>plain</p></epub:default></epub:switch>"
    document = load_document(make_epub({"a.xhtml": forms.format("<p>drawn</p>") + forms.format(f"<p>{math}</p>")}))
    assert document.parts[0].text == "plain\n\n$x$"
