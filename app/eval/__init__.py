"""Measuring a model: passkeys, perplexity, question answering."""
