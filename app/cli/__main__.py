import sys

from app.cli import main

for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="replace")  # a terminal that cannot show a letter of a book is no reason to stop
sys.exit(main())
