"""Messages as the page says them: what to do stands on the page, so command lines and ids are left out.

The same messages are told in the terminal, where their flags are what to do.
"""

import re

_TICK = "tick “Read scanned pages by OCR” in Library and add it again"
# In order: what a message says for the terminal, and what the page says instead.
_WORDS = (
    (r'read them by OCR: "python launch\.py read --ocr .*?", or tick OCR where files are dropped', _TICK),
    (
        r'install OCR with "python launch\.py setup --with ocr" and read it with --ocr, or run '
        r'"ocrmypdf in\.pdf out\.pdf" and add the result',
        "OCR is not installed here (docs/ingest.md tells how); or add a copy that holds text",
    ),
    (
        r'install it (again )?with "?\'?python launch\.py setup --with ocr\'?"?',
        r"install it \1(docs/ingest.md tells how)",
    ),
    (
        r"import it with --text-only(, the documents are read again then)?",
        "tick “Leave its memory out” and import it again",
    ),
    (r"`python launch\.py fetch` (gets it|tries again)", r"the next start \1"),
    (r"`python launch\.py store restore\b[^`]*` puts it back", "docs/store.md tells how to put it back"),
    (r"`python launch\.py store restore\b[^`]*`", "docs/store.md tells what"),
    (r"; add --download to fetch it from the hub", "; choose one that is here in Models"),
    (r"choose another (?:data )?folder with --(?:home|out)(?: or LECTERN_HOME)?", "choose another folder"),
    (r"choose another with --home or LECTERN_HOME", "choose another data folder when Lectern is started"),
    (r"choose another --home", "choose another data folder when Lectern is started"),
    (r"; choose another with --model\b", "; choose another in Models"),
    (r"choose another or leave --port out", "choose another"),
    (r"give (it|the folder of it|the folder of the checkpoint) with --[a-z-]+", r"give \1 when Lectern is started"),
    (r"use --device cpu, or see `doctor`", "start Lectern on the processor"),
    (r"`merge` and --trained-tokens", "`merge` and its trained length"),
    (r", or add --force to replace it", ""),
    (r"\b(?:choose|take|use) --([a-z-]+) (\w+)", r"choose \2 for the \1"),
)
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)\b")  # left over: it begins a message of a setting
_COMMAND = re.compile(r"[`\"]?python launch\.py [^`\";,)]*[`\"]?")
_ID = re.compile(r"\b(document|chat|model|evidence|passage|memory) '?[0-9a-f]{8,64}'?(?![\w-])")
_EVIDENCE = re.compile(r"\b(?:passage|evidence) e\d+-\d+\b")


def plainly(text: str) -> str:
    """A message without command lines and ids."""
    for found, said in _WORDS:
        text = re.sub(found, said, text)
    text = _COMMAND.sub("the command line", text)
    text = _FLAG.sub(lambda flag: flag[1].replace("-", " "), text)
    return _EVIDENCE.sub("this passage", _ID.sub(r"this \1", text))
