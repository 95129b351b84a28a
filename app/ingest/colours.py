"""Source code cut into tokens, for a viewer that colours them."""

from collections.abc import Iterator

# Kinds of tokens that are told apart, by the beginning of their names in Pygments.
KINDS = {
    "Token.Comment": "comment",
    "Token.Keyword": "keyword",
    "Token.Operator.Word": "keyword",
    "Token.Literal.String": "string",
    "Token.Literal.Number": "number",
    "Token.Name.Function": "name",
    "Token.Name.Class": "name",
    "Token.Name.Tag": "keyword",
    "Token.Name.Attribute": "name",
    "Token.Name.Decorator": "name",
}


def tokens(text: str, name: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of the pieces of a file, in order; the kind is "" where nothing is known.

    Args:
        name: of the file, which says what language it is.
    """
    from pygments import lex
    from pygments.lexers import find_lexer_class_for_filename

    found = find_lexer_class_for_filename(name)
    if found is None:
        yield "", text
        return
    lexer = found(stripnl=False, ensurenl=False)
    for kind, piece in lex(text, lexer):
        dotted = str(kind)
        yield next((ours for theirs, ours in KINDS.items() if dotted.startswith(theirs)), ""), piece
