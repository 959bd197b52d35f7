"""Read the rows of a user's dataset, wherever they come from, and render their text."""
