"""Terminal output: results on stdout; messages, progress and image previews on stderr."""
