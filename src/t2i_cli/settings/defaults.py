"""What holds where neither an option nor a setting says anything."""

RETRIES = 5
"""Tries of a call to a server after the first."""
TIMEOUT = 600
"""Seconds for one image of a server, its retries included."""
CONCURRENCY = 4
"""Calls in flight to a server; as many as `t2i serve` puts into one pass."""
CALLS_A_REPLICA = 2
"""Calls in flight to each replica of an endpoint: one that it works on, and one on the way."""
REGION = "us-central1"
"""Where on Google Cloud."""
TTL = "4h"
"""How long a deployment on Vertex AI may live."""
