"""What a person meets (terminal, notebook, HTML page), and how a process starts and stops."""
