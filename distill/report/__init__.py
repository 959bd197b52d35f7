"""`distill compare -o`: students side by side on one page for a browser, with nothing beside it."""
