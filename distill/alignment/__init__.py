"""Which teacher positions a student's tokens are compared with, and maps between vocabularies."""
