"""What a person meets on a terminal or in a notebook, and how a process starts and stops."""
