"""Schemas of the two SQLite files, one function per version. A released function is never edited."""

from dataclasses import dataclass

from sqlite_utils import Database, Migrations

_library = Migrations("lectern-library")
_blocks = Migrations("lectern-blocks")


@dataclass(frozen=True)
class Schema:
    """What makes a SQLite file one of ours.

    Attributes:
        application_id: SQLite's mark for the owner of a file.
        page_size: bytes; takes effect in a new file only.
        when_damaged: what a user can do about a damaged or foreign file.
        may_write_in_place: whether a crash may cost the file where the disk has no room for a log, as with a cache.
    """

    application_id: int
    migrations: Migrations
    page_size: int
    when_damaged: str
    may_write_in_place: bool = False

    def migration_names(self) -> set[str]:
        """Names of every version that this release knows."""
        empty = Database(memory=True, execute_plugins=False)
        try:
            return {migration.name for migration in self.migrations.pending(empty)}
        finally:
            empty.close()


LIBRARY = Schema(
    application_id=0x4C637431,
    migrations=_library,
    page_size=4096,
    when_damaged="`python launch.py store restore` keeps the file under another name and puts its last daily copy, "
    "library.backup.db, in its place",
)
BLOCKS = Schema(
    application_id=0x4C637432,
    migrations=_blocks,
    page_size=32768,
    when_damaged="It is only a cache of what was read: quit Lectern and delete it, documents are read again when asked",
    may_write_in_place=True,
)


_FIRST_TABLES = """
        CREATE TABLE document (
            id TEXT PRIMARY KEY,
            sha256 TEXT NOT NULL UNIQUE,
            title TEXT NOT NULL,
            kind TEXT NOT NULL,
            notes TEXT NOT NULL,
            skipped TEXT NOT NULL,
            created TEXT NOT NULL
        ) STRICT;

        CREATE TABLE part (
            id INTEGER PRIMARY KEY,
            document TEXT NOT NULL REFERENCES document ON DELETE CASCADE,
            number INTEGER NOT NULL,
            label TEXT NOT NULL,
            chapter TEXT,
            memory INTEGER NOT NULL,
            first_line INTEGER,
            text TEXT NOT NULL,
            UNIQUE (document, number)
        ) STRICT;

        CREATE TABLE reading (
            document TEXT NOT NULL REFERENCES document ON DELETE CASCADE,
            recipe TEXT NOT NULL,
            state TEXT NOT NULL,
            detail TEXT NOT NULL,
            PRIMARY KEY (document, recipe)
        ) STRICT;

        CREATE TABLE memory (
            id INTEGER PRIMARY KEY,
            document TEXT NOT NULL REFERENCES document ON DELETE CASCADE,
            recipe TEXT NOT NULL,
            number INTEGER NOT NULL,
            tokens INTEGER NOT NULL,
            spans TEXT NOT NULL,
            token_ids BLOB NOT NULL,
            UNIQUE (document, recipe, number)
        ) STRICT;

        CREATE TABLE manifest (
            memory INTEGER NOT NULL REFERENCES memory ON DELETE CASCADE,
            position INTEGER NOT NULL,
            key TEXT NOT NULL,
            PRIMARY KEY (memory, position)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE chat (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            title TEXT NOT NULL,
            model TEXT NOT NULL,
            created TEXT NOT NULL,
            updated TEXT NOT NULL
        ) STRICT;

        CREATE TABLE chat_document (
            chat TEXT NOT NULL REFERENCES chat (id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (chat, position)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE message (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            chat TEXT NOT NULL REFERENCES chat (id) ON DELETE CASCADE,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            stats TEXT NOT NULL,
            created TEXT NOT NULL
        ) STRICT;
        CREATE INDEX message_chat ON message (chat, id);

        CREATE TABLE evidence (
            message INTEGER NOT NULL REFERENCES message ON DELETE CASCADE,
            number INTEGER NOT NULL,
            document TEXT NOT NULL,
            title TEXT NOT NULL,
            label TEXT NOT NULL,
            part INTEGER NOT NULL,
            char_start INTEGER NOT NULL,
            char_end INTEGER NOT NULL,
            text TEXT NOT NULL,
            weight REAL NOT NULL,
            regions TEXT NOT NULL,
            PRIMARY KEY (message, number)
        ) STRICT;

        CREATE TABLE tail (
            chat TEXT PRIMARY KEY REFERENCES chat (id) ON DELETE CASCADE,
            recipe TEXT NOT NULL,
            token_ids BLOB NOT NULL,
            turns TEXT NOT NULL,
            memories TEXT NOT NULL
        ) STRICT;

        CREATE TABLE tail_block (
            chat TEXT NOT NULL REFERENCES tail ON DELETE CASCADE,
            position INTEGER NOT NULL,
            key TEXT NOT NULL,
            PRIMARY KEY (chat, position)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE passkey_run (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            model TEXT NOT NULL,
            policy TEXT NOT NULL,
            settings TEXT NOT NULL,
            created TEXT NOT NULL
        ) STRICT;

        CREATE TABLE passkey_cell (
            run INTEGER NOT NULL REFERENCES passkey_run ON DELETE CASCADE,
            tokens INTEGER NOT NULL,
            depth REAL NOT NULL,
            "right" INTEGER NOT NULL,
            trials INTEGER NOT NULL,
            PRIMARY KEY (run, tokens, depth)
        ) STRICT;
        """


@_library(name="0001")
def library_0001(db: Database) -> None:
    """Documents, chats, evidence, manifests and passkey runs.

    Chats and evidence name documents without a foreign key: they outlive a deleted document, and its id
    comes from its bytes, so adding the same file again joins them again.
    """
    db.executescript(_FIRST_TABLES)
    for table, column in (("part", "text"), ("chat", "title"), ("message", "content")):
        db.table(table).enable_fts([column], create_triggers=True, tokenize="unicode61 remove_diacritics 2")


@_library(name="0002")
def library_0002(db: Database) -> None:
    """Where a chat was forked from, what each recipe digest stands for, and which documents' memory must stay.

    The parent is no foreign key: a fork outlives it.
    """
    db.executescript(
        """
        ALTER TABLE chat ADD COLUMN parent TEXT;

        CREATE TABLE recipe (
            digest TEXT PRIMARY KEY,
            parts TEXT NOT NULL,
            created TEXT NOT NULL
        ) STRICT;

        CREATE TABLE pin (
            document TEXT PRIMARY KEY REFERENCES document ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;
        """
    )


@_library(name="0003")
def library_0003(db: Database) -> None:
    """The policy that a chat reads and answers under; '' in chats of older releases: the one at the start."""
    db.execute("ALTER TABLE chat ADD COLUMN policy TEXT NOT NULL DEFAULT ''")


@_library(name="0004")
def library_0004(db: Database) -> None:
    """What a part is, the places inside it, and the boxes of what OCR read, as JSON."""
    db.executescript(
        """
        ALTER TABLE part ADD COLUMN kind TEXT NOT NULL DEFAULT '';
        ALTER TABLE part ADD COLUMN places TEXT NOT NULL DEFAULT '[]';
        ALTER TABLE part ADD COLUMN boxes TEXT NOT NULL DEFAULT '[]';
        """
    )


@_library(name="0005")
def library_0005(db: Database) -> None:
    """Which library this is and how much was ever added to it; what users delete does not lower it.

    And which documents came with a chat and not from their file: the digest of what they hold.
    """
    db.executescript(
        """
        ALTER TABLE document ADD COLUMN imported TEXT;
        CREATE TABLE life (
            id TEXT NOT NULL,
            added INTEGER NOT NULL
        ) STRICT;
        INSERT INTO life SELECT lower(hex(randomblob(16))),
            (SELECT COUNT(*) FROM document) + (SELECT COUNT(*) FROM chat)
            + COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'message'), 0);
        CREATE TRIGGER document_added AFTER INSERT ON document BEGIN UPDATE life SET added = added + 1; END;
        CREATE TRIGGER chat_added AFTER INSERT ON chat BEGIN UPDATE life SET added = added + 1; END;
        CREATE TRIGGER message_added AFTER INSERT ON message BEGIN UPDATE life SET added = added + 1; END;
        """
    )


@_library(name="0006")
def library_0006(db: Database) -> None:
    """Passages to be found by words, and what found each passage that is shown: '' in answers of older releases.

    The index keeps words alone: a passage's text is read from its part. Passages of documents that are there already
    are made when they are read next.
    """
    db.executescript(
        """
        ALTER TABLE evidence ADD COLUMN found_by TEXT NOT NULL DEFAULT '';

        CREATE TABLE passage (
            id INTEGER PRIMARY KEY,
            part INTEGER NOT NULL REFERENCES part ON DELETE CASCADE,
            char_start INTEGER NOT NULL,
            char_end INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX passage_part ON passage (part);

        CREATE VIEW passage_text AS
            SELECT passage.id, substr(part.text, char_start + 1, char_end - char_start) AS text
            FROM passage JOIN part ON part.id = passage.part;

        CREATE VIRTUAL TABLE passage_fts USING fts5 (
            text, content='passage_text', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2'
        );

        CREATE TRIGGER passage_gone BEFORE DELETE ON passage BEGIN
            INSERT INTO passage_fts (passage_fts, rowid, text)
                SELECT 'delete', id, text FROM passage_text WHERE id = old.id;
        END;
        CREATE TRIGGER passages_go BEFORE DELETE ON part BEGIN
            DELETE FROM passage WHERE part = old.id;
        END;
        """
    )


@_library(name="0007")
def library_0007(db: Database) -> None:
    """System text of a chat; '' for the model's own."""
    db.execute("ALTER TABLE chat ADD COLUMN system TEXT NOT NULL DEFAULT ''")


@_library(name="0008")
def library_0008(db: Database) -> None:
    """Questions that the model answered rightly from a document when it was tried, as JSON."""
    db.execute(
        """
        CREATE TABLE suggestion (
            document TEXT NOT NULL REFERENCES document ON DELETE CASCADE,
            recipe TEXT NOT NULL,
            questions TEXT NOT NULL,
            PRIMARY KEY (document, recipe)
        ) STRICT
        """
    )


@_library(name="0009")
def library_0009(db: Database) -> None:
    """Versions of turns: which one each follows, and which are shown.

    `parent` of a question is the question before it, 0 for none; answers have none. `told` of a tail is the last
    message of the turns that it holds, where those are not the ones that are shown.
    """
    db.executescript(
        """
        ALTER TABLE message ADD COLUMN parent INTEGER;
        ALTER TABLE message ADD COLUMN shown INTEGER NOT NULL DEFAULT 1;
        ALTER TABLE tail ADD COLUMN told INTEGER;
        UPDATE message SET parent = COALESCE(
            (SELECT MAX(id) FROM message b WHERE b.chat = message.chat AND b.role = 'user' AND b.id < message.id), 0
        ) WHERE role = 'user';
        """
    )


@_library(name="0010")
def library_0010(db: Database) -> None:
    """How each chat is answered, as JSON, '' for as new chats are; and by name what was chosen for all."""
    db.executescript(
        """
        ALTER TABLE chat ADD COLUMN answers TEXT NOT NULL DEFAULT '';
        CREATE TABLE preference (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
        """
    )


@_library(name="0011")
def library_0011(db: Database) -> None:
    """Notes of questions about a whole text, part by part: what was gone through is not gone through again.

    `recipe` names the model that made a note, '' for those that code made.
    """
    db.execute(
        """
        CREATE TABLE note (
            document TEXT NOT NULL REFERENCES document ON DELETE CASCADE,
            task TEXT NOT NULL,
            recipe TEXT NOT NULL,
            part INTEGER NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (document, task, recipe, part)
        ) STRICT, WITHOUT ROWID
        """
    )


@_blocks(name="0001")
def blocks_0001(db: Database) -> None:
    """Blocks: small rows to look up and to evict, index rows, and K/V rows of at most 1 MiB."""
    db.executescript(
        """
        CREATE TABLE block (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            codec TEXT NOT NULL,
            bundles INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            last_used INTEGER NOT NULL
        ) STRICT;

        CREATE TABLE block_index (
            block INTEGER PRIMARY KEY REFERENCES block ON DELETE CASCADE,
            tokens BLOB NOT NULL,
            crc INTEGER NOT NULL,
            data BLOB NOT NULL
        ) STRICT;

        CREATE TABLE block_kv (
            id INTEGER PRIMARY KEY,
            block INTEGER NOT NULL REFERENCES block ON DELETE CASCADE,
            bundle INTEGER NOT NULL,
            crc INTEGER NOT NULL,
            data BLOB NOT NULL,
            UNIQUE (block, bundle)
        ) STRICT;
        """
    )


@_blocks(name="0002")
def blocks_0002(db: Database) -> None:
    """The library that named these blocks last, and the hour in which a smaller or another one stood in its place."""
    db.execute("CREATE TABLE library (id TEXT NOT NULL, added INTEGER NOT NULL, shrank INTEGER NOT NULL) STRICT")
