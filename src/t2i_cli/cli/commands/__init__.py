"""The commands of `t2i`, one module each."""
