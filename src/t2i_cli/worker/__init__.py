"""The warm worker: a server in the background that keeps a model loaded between `t2i generate`s."""
