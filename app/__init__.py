"""Lectern: a chat over whole books and whole codebases, with the language model inside.

Who may import whom; a row imports rows below it, never up or sideways (tests/test_imports.py):

    launch  cli  doctor
    ui  server
    chat  eval  train
    runtime  ingest  store
    kernels
    records  settings  passkeys  passages  needles  answers  process
    errors  commands  privacy  setup
    units
"""

__version__ = "0.1.0"
