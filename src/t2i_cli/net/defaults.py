"""What backends share that make images elsewhere: patience, calls in flight, and answers."""

RETRIES = 5
"""Tries after the first, where nothing else is said."""
TIMEOUT = 600
"""Seconds for one image, its retries included."""
CONCURRENCY = 4
"""Calls in flight to a server; as many as `t2i serve` puts into one pass."""
CALLS_A_REPLICA = 2
"""Calls in flight to each replica of an endpoint: one that it works on, and one on the way."""
