"""One module per format: `blocks(path, about)` gives what is read of a file, in reading order.

They run in the child process only, and refuse with `Refused` what they cannot read.
"""
