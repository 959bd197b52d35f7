"""Make the sequences that a teacher reads: render rows, tokenise them, cut them into windows."""
