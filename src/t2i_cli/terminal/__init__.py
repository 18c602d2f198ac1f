"""What a person or a script sees: results on stdout, notes and progress on stderr, pictures."""
