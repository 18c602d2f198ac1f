"""Files, read and written safely: whole or not at all, no link followed, limits before work."""
