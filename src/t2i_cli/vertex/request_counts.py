"""How many requests an endpoint has answered, by Cloud Monitoring."""

import time
from collections.abc import Mapping
from typing import Any

from t2i_cli.errors import T2IError
from t2i_cli.vertex.client import GoogleClient


def count_requests(client: GoogleClient, endpoint: str, start: float) -> int | None:
    """Responses of an endpoint since `start` (unix seconds) by Cloud Monitoring, minutes late.

    None if Cloud Monitoring cannot be queried.
    """
    span = max(60, round(client.server_time() - start))
    query = {
        "filter": 'metric.type="aiplatform.googleapis.com/prediction/online/response_count" AND '
        f'resource.labels.endpoint_id="{endpoint.split("/")[-1]}"',
        "interval.startTime": _format_timestamp(client.server_time() - span),
        "interval.endTime": _format_timestamp(client.server_time()),
        "aggregation.alignmentPeriod": f"{span}s",
        "aggregation.perSeriesAligner": "ALIGN_SUM",
        "aggregation.crossSeriesReducer": "REDUCE_SUM",
    }
    path = f"/v3/projects/{client.location.project}/timeSeries"
    try:
        series = client.list_all("monitoring", path, "timeSeries", query)
        return sum(_point_count(point) for one in series for point in one.get("points", []))
    except T2IError:
        # Without monitoring.timeSeries.list the other columns are still known.
        return None


def _point_count(point: Mapping[str, Any]) -> int:
    """The value of one point of a time series."""
    value = point["value"]
    return int(value.get("int64Value", 0)) if isinstance(value, dict) else 0


def _format_timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
