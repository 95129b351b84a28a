"""Joins ingest, store and runtime: the one object behind UI, CLI and tests."""

from app.chat.document_chat import DocumentChat

__all__ = ["DocumentChat"]
