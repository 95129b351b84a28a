"""The data folder in SQLite: documents, chats and evidence in library.db, memory blocks in kv.db."""
