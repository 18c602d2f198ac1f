"""Safe file access: atomic writes, no symbolic links followed, size limits checked first."""
