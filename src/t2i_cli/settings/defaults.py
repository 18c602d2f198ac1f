"""Defaults for options that neither the command line nor a setting gives."""

RETRIES = 5
"""Retries of a request to a server after the first attempt."""
TIMEOUT = 600
"""Seconds for one image of a server, retries included."""
CONCURRENCY = 4
"""Concurrent requests to a server; as many as `t2i serve` puts into one batch."""
CALLS_A_REPLICA = 2
"""Concurrent requests per replica of an endpoint: one being processed, one in transit."""
REGION = "us-central1"
"""Region of Google Cloud."""
TTL = "4h"
"""TTL of a deployment on Vertex AI."""
