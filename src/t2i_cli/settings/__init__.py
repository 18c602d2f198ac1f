"""Settings: their schema, their store, and the option groups of commands."""
