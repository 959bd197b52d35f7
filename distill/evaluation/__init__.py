"""How good a student is: on text, against its teacher's records, by its answers."""
