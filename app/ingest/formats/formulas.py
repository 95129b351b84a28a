"""Formulas of office files and web pages as LaTeX text between dollar signs."""

import logging
from copy import deepcopy

from lxml import etree

from app.ingest.formats.parse import attribute, local

_OMML = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_log = logging.getLogger(__name__)


def from_omml(formula: etree._Element) -> str:
    """The LaTeX of an `m:oMath` or `m:oMathPara`; its plain letters where the converter fails; "" when it is empty."""
    from officemath2latex import process_math_node

    if local(formula) == "omathpara":
        return "\n".join(filter(None, (from_omml(one) for one in formula if local(one) == "omath")))
    formula = deepcopy(formula)
    formula.tail = None
    _as_shown(formula)
    plain = "".join(node.text or "" for node in formula.iter(f"{_OMML}t")).strip()
    try:
        latex = " ".join(process_math_node(formula).replace(r"\sqrt[]", r"\sqrt").split())
    except Exception as error:  # a formula of any file, given to a library
        _log.info("formula: %s", error)
        latex = ""
    return f"${latex or plain}$" if latex or plain else ""


def from_mathml(formula: etree._Element) -> str:
    """The LaTeX of a `math` element: its own annotation, else the converter's, else its alternative or plain text."""
    for note in formula.iter():
        if local(note) == "annotation" and "tex" in attribute(note, "encoding").lower():
            return f"${' '.join((note.text or '').split())}$"
    plain = " ".join("".join(formula.itertext()).split())
    if not plain:
        return f"${alternative}$" if (alternative := attribute(formula, "alttext").strip()) else ""
    return f"${_converted(formula) or plain}$"


def _converted(formula: etree._Element) -> str:
    from mathml_to_latex.converter import MathMLToLaTeX

    formula = deepcopy(formula)
    formula.tail = None
    for element in formula.iter():
        if isinstance(element.tag, str):
            element.tag = local(element)  # the converter knows elements without a namespace only
    etree.cleanup_namespaces(formula)
    try:
        return " ".join(MathMLToLaTeX.convert(etree.tostring(formula, encoding="unicode")).split())
    except Exception as error:  # as above
        _log.info("formula: %s", error)
        return ""


def _as_shown(formula: etree._Element) -> None:
    """Undo what the converter would lose: marks of changes, separators of brackets, phantoms that are shown."""
    for element in list(formula.iter()):
        name = local(element)
        if name in ("del", "movefrom"):
            _drop(element)
        elif name in ("ins", "moveto", "phant") and not _hidden(element):
            element.tag = f"{_OMML}box" if name == "phant" else element.tag
            if name != "phant":
                _unwrap(element)
        elif element.tag == f"{_OMML}d":
            _separate(element)


def _hidden(element: etree._Element) -> bool:
    return any(local(child) == "show" and attribute(child, "val") in ("0", "off", "false") for child in element.iter())


def _separate(brackets: etree._Element) -> None:
    found = [attribute(node, "val") for node in brackets.iterfind(f"{_OMML}dPr/{_OMML}sepChr")]
    for part in brackets.findall(f"{_OMML}e")[:-1]:
        run = etree.SubElement(etree.SubElement(part, f"{_OMML}r"), f"{_OMML}t")
        run.text = found[0] if found else "|"


def _unwrap(element: etree._Element) -> None:
    parent, at = element.getparent(), element.getparent().index(element)
    for child in reversed(element):
        parent.insert(at, child)
    parent.remove(element)


def _drop(element: etree._Element) -> None:
    if element.getparent() is not None:
        element.getparent().remove(element)
