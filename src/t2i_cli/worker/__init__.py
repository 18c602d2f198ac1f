"""The warm worker: a background server that keeps a model loaded between runs of t2i."""
