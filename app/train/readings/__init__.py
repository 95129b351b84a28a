"""Readings: a text that is read once and many questions about it, side by side in one row."""
