"""Lectern: a chat over whole books and whole codebases, with the language model inside.

Who may import whom; a row imports rows below it, never up or sideways (tests/test_imports.py):

    launch  cli
    recovery  cluster
    ui  server
    api
    chat  eval  train  guard
    runtime  tasks
    models  ingest  store
    memory
    kernels
    records  settings
    errors  setup  markdown
    system  wellformed
"""

__version__ = "0.1.0"
