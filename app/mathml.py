"""LaTeX of answers as MathML, which browsers show without help."""

from latex2mathml.converter import convert
from lxml import etree

LONGEST = 2_000  # characters
TAGS = frozenset(
    "math mrow mi mn mo mtext mspace ms mfrac msqrt mroot msub msup msubsup munder mover munderover mmultiscripts "
    "mprescripts none mtable mtr mtd mpadded mphantom menclose mstyle".split()
)
ATTRIBUTES = frozenset(
    "display displaystyle scriptlevel mathvariant stretchy fence separator form accent accentunder linethickness "
    "columnalign rowspacing columnspacing movablelimits largeop lspace rspace minsize maxsize width height depth "
    "notation symmetric".split()
)


def mathml(latex: str, *, display: bool) -> str:
    """MathML of a formula; "" for one that cannot be read or would bring more than a formula."""
    if len(latex) > LONGEST:
        return ""
    try:
        tree = etree.fromstring(convert(latex, display="block" if display else "inline"))
    except Exception:  # whatever the converter stumbles over
        return ""
    for element in tree.iter():
        name = etree.QName(element).localname if isinstance(element.tag, str) else ""
        if name not in TAGS:
            return ""
        for key in set(element.attrib) - ATTRIBUTES:
            del element.attrib[key]
    return etree.tostring(tree, encoding="unicode")
