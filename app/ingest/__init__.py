"""Files to documents: pages and files of clean text, with spans that map tokens back to them."""
