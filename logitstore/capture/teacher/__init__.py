"""Load a teacher, and summarise its distributions."""
