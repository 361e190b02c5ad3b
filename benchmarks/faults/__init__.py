"""What goes wrong while a sweep runs, done on purpose: `python -m benchmarks faults`.

Each fault is injected into a tiny real sweep (the real command line, real training, a real pip where a model
is fetched), which is then resumed with the same command. What is in the folder in the end is compared with an
undisturbed sweep's, number by number.
"""

from benchmarks.faults.table import main

__all__ = ["main"]
