"""The regions of Vertex AI, and questions to all of them at once."""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from t2i_cli.errors import T2IError
from t2i_cli.vertex.client import GoogleClient

KNOWN_REGIONS = (
    "africa-south1",
    "asia-east1",
    "asia-east2",
    "asia-northeast1",
    "asia-northeast2",
    "asia-northeast3",
    "asia-south1",
    "asia-south2",
    "asia-southeast1",
    "asia-southeast2",
    "australia-southeast1",
    "australia-southeast2",
    "europe-central2",
    "europe-north1",
    "europe-north2",
    "europe-southwest1",
    "europe-west1",
    "europe-west12",
    "europe-west2",
    "europe-west3",
    "europe-west4",
    "europe-west6",
    "europe-west8",
    "europe-west9",
    "me-central1",
    "me-central2",
    "me-west1",
    "northamerica-northeast1",
    "northamerica-northeast2",
    "southamerica-east1",
    "southamerica-west1",
    "us-central1",
    "us-east1",
    "us-east4",
    "us-east5",
    "us-east7",
    "us-south1",
    "us-west1",
    "us-west2",
    "us-west3",
    "us-west4",
    "us-west8",
)
"""Regions of Vertex AI as google-cloud-aiplatform 2.7 has them (`SUPPORTED_REGIONS`)."""

_CONCURRENCY = 8
"""Regions asked at the same time."""
_REGION = re.compile(r"[a-z]+-[a-z]+[0-9]+")

RegionAnswer = TypeVar("RegionAnswer")


@dataclass(frozen=True, kw_only=True)
class RegionAnswers(Generic[RegionAnswer]):
    """What each region answered, or why it could not be asked."""

    answers: Mapping[str, RegionAnswer]
    failures: Mapping[str, T2IError]

    def failure_texts(self) -> list[str]:
        """One sentence for each reason, as the first of the regions gives it that it holds for."""
        by_reason: dict[str, list[str]] = {}
        for region, error in self.failures.items():
            by_reason.setdefault(error.message.replace(region, "REGION"), []).append(region)
        return [
            f"These regions could not be asked, and may have endpoints that are paid for: "
            f"{', '.join(names)}. {self.failures[names[0]].message}"
            for names in by_reason.values()
        ]


def list_regions(client: GoogleClient) -> list[str]:
    """The regions in which the project can use Vertex AI: those that the API lists, else all known.

    https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations/list
    """
    path = f"projects/{client.location.project}/locations"
    try:
        listed = [
            str(one.get("locationId", ""))
            for one in client.list_all("aiplatform", path, "locations")
        ]
    except T2IError:
        listed = []
    found = {name for name in listed if _REGION.fullmatch(name)}
    # One host may know of its own region only.
    return sorted(found if len(found) > 1 else KNOWN_REGIONS)


def ask_regions(
    client: GoogleClient, names: Sequence[str], ask: Callable[[GoogleClient], RegionAnswer]
) -> RegionAnswers[RegionAnswer]:
    """Call `ask` with a client of each region, several at a time."""

    def attempt(region: str) -> RegionAnswer | T2IError:
        try:
            return ask(client.in_region(region))
        except T2IError as error:
            return error

    pool = ThreadPoolExecutor(_CONCURRENCY)
    try:
        found = dict(zip(names, pool.map(attempt, names), strict=True))
    finally:
        # After Ctrl-C no further region is asked.
        pool.shutdown(wait=False, cancel_futures=True)
    return RegionAnswers(
        answers={name: one for name, one in found.items() if not isinstance(one, T2IError)},
        failures={name: one for name, one in found.items() if isinstance(one, T2IError)},
    )
