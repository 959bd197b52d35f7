"""The student: loading it, its text and its kind."""
