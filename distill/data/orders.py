"""What rows of a store can be ordered by, for the command line, which loads nothing else."""

#: Each, and whether the most of it is kept.
BY = {"gain": True, "surprise": False, "entropy": False, "length": True, "agreement": True}
