"""Makes the environment that Lectern runs in. Standard library only: launch.py imports it before anything is installed.

state     where things lie, and whether the set-up is done (the fast path of every start)
install   the steps of a set-up
builds    which build of torch to install, and what it costs to download
runner    runs pip with a live line, a log and a next step when it fails
lock      keeps two set-ups of one checkout apart
"""


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do."""
