"""transformers, for all who use it: imported by one thread, while others wait.

It puts another module in its place while it is imported. A thread that imports it meanwhile by itself keeps the first
one, which has none of its names (findings/transformers_two_threads.sh).
"""

import transformers

__all__ = ["transformers"]
