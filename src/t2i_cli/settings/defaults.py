"""Defaults for options that neither the command line nor a setting gives."""

RETRIES = 5
"""Retries of a request to a server after the first attempt."""
TIMEOUT = 600
"""Seconds for one image of a server, retries included."""
CONCURRENCY = 4
"""Concurrent requests to a server; as many as `t2i serve` puts into one batch."""
CALLS_A_REPLICA = 2
"""Concurrent requests per replica of an endpoint: one being processed, one in transit."""
WORKER_TIMEOUT = 600
"""Seconds without a sign of a worker of a Ray cluster after which it is replaced."""
REGION = "us-central1"
"""Region of Google Cloud."""
GEMINI_MODEL = "gemini-3.1-flash-image"
"""Image model of Google's."""
GEMINI_REGION = "global"
"""Location that serves every image model of Google's (the models' pages, November 2026)."""
TTL = "4h"
"""TTL of a deployment on Vertex AI."""
