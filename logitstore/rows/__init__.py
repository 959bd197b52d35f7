"""The rows of a user's dataset, wherever they come from, and their text."""
