"""Self-contained HTML pages and the figures in them, for both programs."""
