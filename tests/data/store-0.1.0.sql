-- library.db
PRAGMA application_id = 1281586225;
PRAGMA page_size = 4096;
PRAGMA auto_vacuum = 2;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
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
CREATE VIRTUAL TABLE "part_fts" USING FTS5 (
    "text",
    tokenize='unicode61 remove_diacritics 2',
    content="part"
);
CREATE VIRTUAL TABLE "chat_fts" USING FTS5 (
    "title",
    tokenize='unicode61 remove_diacritics 2',
    content="chat"
);
CREATE VIRTUAL TABLE "message_fts" USING FTS5 (
    "content",
    tokenize='unicode61 remove_diacritics 2',
    content="message"
);
INSERT INTO [_sqlite_migrations] VALUES (1, 'lectern-library', '0001', '2026-11-20 15:46:23.779672+00:00');
INSERT INTO [document] VALUES ('eeeeeeeeeeee', 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee', 'Emma', 'text', '["1 page holds images only"]', '[["b.bin", "binary"]]', '2026-11-20T15:46:23.900189+00:00');
INSERT INTO [part] VALUES (1, 'eeeeeeeeeeee', 1, 'i', 'Volume I', 0, NULL, 'Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition.');
INSERT INTO [part] VALUES (2, 'eeeeeeeeeeee', 2, 'src/a.py', NULL, 1, 0, 'a.py (Python)
print()
');
INSERT INTO [reading] VALUES ('eeeeeeeeeeee', '5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a', 'read', '');
INSERT INTO [memory] VALUES (1, 'eeeeeeeeeeee', '5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a', 0, 28, '[[1, 1, 28]]', X'0100000002000000030000000400000005000000060000000700000008000000090000000A0000000B0000000C0000000D0000000E0000000F000000100000001100000012000000130000001400000015000000160000001700000018000000190000001A0000001B0000001C000000');
INSERT INTO [manifest] VALUES (1, 0, '868f483d13cc23dd41d9b7651edb55e0916c8dd306ee7f35daaab6d40a1de243');
INSERT INTO [manifest] VALUES (1, 1, '4e464a0e833e89562f91cec774d7f48aa576fbc08f7ff814d8b7a5e4a69f848c');
INSERT INTO [manifest] VALUES (1, 2, 'e63b03988c6af8d1a904c2b653deec1074b21f684a7a47e156162171a04f606f');
INSERT INTO [manifest] VALUES (1, 3, '5cffd1e843e3b220c639f6d936bf33f2336ca5f9b1893629915eb0baad9977ed');
INSERT INTO [chat] VALUES (1, 'ab825996d2ae', 'Who is Emma?', 'lectern-small', '2026-11-20T15:46:23.909308+00:00', '2026-11-20T15:46:23.910173+00:00');
INSERT INTO [chat_document] VALUES ('ab825996d2ae', 0, 'eeeeeeeeeeee');
INSERT INTO [message] VALUES (1, 'ab825996d2ae', 'user', 'Who is Emma?', '{}', '2026-11-20T15:46:23.909633+00:00');
INSERT INTO [message] VALUES (2, 'ab825996d2ae', 'assistant', 'A young lady.', '{"tokens_read": 9}', '2026-11-20T15:46:23.909736+00:00');
INSERT INTO [message] VALUES (3, 'ab825996d2ae', 'user', 'Is she rich?', '{}', '2026-11-20T15:46:23.910067+00:00');
INSERT INTO [message] VALUES (4, 'ab825996d2ae', 'assistant', 'She is.', '{}', '2026-11-20T15:46:23.910105+00:00');
INSERT INTO [evidence] VALUES (2, 1, 'eeeeeeeeeeee', 'Emma', 'i', 1, 0, 14, 'Emma Woodhouse', 0.5, '[[0, 1]]');
INSERT INTO [tail] VALUES ('ab825996d2ae', '5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a', X'0100000002000000030000000400000005000000060000000700000008000000090000000A000000', '[4, 10]', '[["eeeeeeeeeeee", 0]]');
INSERT INTO [tail_block] VALUES ('ab825996d2ae', 0, 'ea14f2b5924d4de3b1041e75de71d50a4b2ad3ff4299b6a93bacb80f9ee59e9a');
INSERT INTO [tail_block] VALUES ('ab825996d2ae', 1, '1826fdf481faa7935dbbc970a59438f8e6f709ec012f4c79646943c269fd06b4');
INSERT INTO [passkey_run] VALUES (1, 'lectern-small', 'keep-all', '{"seed": 1}', '2026-11-20T15:46:23.910322+00:00');
INSERT INTO [passkey_cell] VALUES (1, 2048, 0.5, 3, 4);
INSERT INTO [part_fts] ([part_fts]) VALUES ('rebuild');
INSERT INTO [chat_fts] ([chat_fts]) VALUES ('rebuild');
INSERT INTO [message_fts] ([message_fts]) VALUES ('rebuild');
CREATE TRIGGER "part_ai" AFTER INSERT ON "part" BEGIN
  INSERT INTO "part_fts" (rowid, "text") VALUES (new.rowid, new."text");
END;
CREATE TRIGGER "part_ad" AFTER DELETE ON "part" BEGIN
  INSERT INTO "part_fts" ("part_fts", rowid, "text") VALUES('delete', old.rowid, old."text");
END;
CREATE TRIGGER "part_au" AFTER UPDATE ON "part" BEGIN
  INSERT INTO "part_fts" ("part_fts", rowid, "text") VALUES('delete', old.rowid, old."text");
  INSERT INTO "part_fts" (rowid, "text") VALUES (new.rowid, new."text");
END;
CREATE TRIGGER "chat_ai" AFTER INSERT ON "chat" BEGIN
  INSERT INTO "chat_fts" (rowid, "title") VALUES (new.rowid, new."title");
END;
CREATE TRIGGER "chat_ad" AFTER DELETE ON "chat" BEGIN
  INSERT INTO "chat_fts" ("chat_fts", rowid, "title") VALUES('delete', old.rowid, old."title");
END;
CREATE TRIGGER "chat_au" AFTER UPDATE ON "chat" BEGIN
  INSERT INTO "chat_fts" ("chat_fts", rowid, "title") VALUES('delete', old.rowid, old."title");
  INSERT INTO "chat_fts" (rowid, "title") VALUES (new.rowid, new."title");
END;
CREATE TRIGGER "message_ai" AFTER INSERT ON "message" BEGIN
  INSERT INTO "message_fts" (rowid, "content") VALUES (new.rowid, new."content");
END;
CREATE TRIGGER "message_ad" AFTER DELETE ON "message" BEGIN
  INSERT INTO "message_fts" ("message_fts", rowid, "content") VALUES('delete', old.rowid, old."content");
END;
CREATE TRIGGER "message_au" AFTER UPDATE ON "message" BEGIN
  INSERT INTO "message_fts" ("message_fts", rowid, "content") VALUES('delete', old.rowid, old."content");
  INSERT INTO "message_fts" (rowid, "content") VALUES (new.rowid, new."content");
END;
-- kv.db
PRAGMA application_id = 1281586226;
PRAGMA page_size = 32768;
PRAGMA auto_vacuum = 2;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
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
INSERT INTO [_sqlite_migrations] VALUES (1, 'lectern-blocks', '0001', '2026-11-20 15:46:23.870149+00:00');
INSERT INTO [block] VALUES (1, '868f483d13cc23dd41d9b7651edb55e0916c8dd306ee7f35daaab6d40a1de243', 'raw', 2, 88, 498663);
INSERT INTO [block] VALUES (2, '4e464a0e833e89562f91cec774d7f48aa576fbc08f7ff814d8b7a5e4a69f848c', 'raw', 2, 88, 498663);
INSERT INTO [block] VALUES (3, 'e63b03988c6af8d1a904c2b653deec1074b21f684a7a47e156162171a04f606f', 'raw', 2, 88, 498663);
INSERT INTO [block] VALUES (4, '5cffd1e843e3b220c639f6d936bf33f2336ca5f9b1893629915eb0baad9977ed', 'raw', 2, 72, 498663);
INSERT INTO [block] VALUES (5, 'ea14f2b5924d4de3b1041e75de71d50a4b2ad3ff4299b6a93bacb80f9ee59e9a', 'raw', 2, 88, 498663);
INSERT INTO [block] VALUES (6, '1826fdf481faa7935dbbc970a59438f8e6f709ec012f4c79646943c269fd06b4', 'raw', 2, 64, 498663);
INSERT INTO [block_index] VALUES (1, X'0100000002000000030000000400000005000000060000000700000008000000', 2425399699, X'000000000000000000');
INSERT INTO [block_index] VALUES (2, X'090000000A0000000B0000000C0000000D0000000E0000000F00000010000000', 1103756374, X'010101010101010101');
INSERT INTO [block_index] VALUES (3, X'1100000012000000130000001400000015000000160000001700000018000000', 3292584491, X'020202020202020202');
INSERT INTO [block_index] VALUES (4, X'190000001A0000001B0000001C000000', 2339073394, X'030303030303030303');
INSERT INTO [block_index] VALUES (5, X'0100000002000000030000000400000005000000060000000700000008000000', 3604190093, X'040404040404040404');
INSERT INTO [block_index] VALUES (6, X'090000000A000000', 1406037144, X'050505050505050505');
INSERT INTO [block_kv] VALUES (1, 1, 0, 808965544, X'00000000000000000000000000000000000000000000000000000000000000000000000000000000');
INSERT INTO [block_kv] VALUES (2, 1, 1, 3179787208, X'00000000000000');
INSERT INTO [block_kv] VALUES (3, 2, 0, 1094060227, X'01010101010101010101010101010101010101010101010101010101010101010101010101010101');
INSERT INTO [block_kv] VALUES (4, 2, 1, 1535034452, X'01010101010101');
INSERT INTO [block_kv] VALUES (5, 3, 0, 3243122751, X'02020202020202020202020202020202020202020202020202020202020202020202020202020202');
INSERT INTO [block_kv] VALUES (6, 3, 1, 581871876, X'02020202020202');
INSERT INTO [block_kv] VALUES (7, 4, 0, 2376279822, X'03030303030303030303030303030303030303030303030303030303030303030303030303030303');
INSERT INTO [block_kv] VALUES (8, 4, 1, 4275796574, X'03030303030303');
INSERT INTO [block_kv] VALUES (9, 5, 0, 1108813477, X'04040404040404040404040404040404040404040404040404040404040404040404040404040404');
INSERT INTO [block_kv] VALUES (10, 5, 1, 553763517, X'04040404040404');
INSERT INTO [block_kv] VALUES (11, 6, 0, 4015664677, X'05050505050505050505050505050505050505050505050505050505050505050505050505050505');
INSERT INTO [block_kv] VALUES (12, 6, 1, 2238274772, X'05050505050505');
