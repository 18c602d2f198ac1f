"""`generate`, `batch` and `serve` as processes on a backend that bills each image."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import jsonschema
import pytest

from t2i_cli.cost_limit import CostLimitedBackend
from tests.conftest import T2I
from tests.fakes.priced_t2i import SOURCE, billed
from tests.fakes.serving import serving
from tests.fakes.stub_backend import StubBackend
from tests.processes import watched

ROOT = Path(__file__).parent.parent
BATCH = ("batch", "p.txt", "-o", "out")
COMMAND = (sys.executable, "-m", "tests.fakes.priced_t2i")
Paid = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(t2i_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    (tmp_path / "p.txt").write_text("".join(f"a red star number {n}\n" for n in range(6)))
    return t2i_env | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def paid(environment: dict[str, str], tmp_path: Path) -> Paid:
    """Run t2i on a backend whose images cost `price` USD, "" for an unknown price."""

    def run(*args: str, price: str = "0.04") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *args],
            env=environment | {"PRICE": price},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def manifest_lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / "out" / "manifest.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()[1:]]


def test_a_batch_stops_at_its_limit_and_goes_on_in_the_next_run(paid: Paid, tmp_path: Path) -> None:
    dry = paid(*BATCH, "--dry-run", "--max-cost", "0.1")
    assert dry.returncode == 0, dry.stderr
    assert (
        f"  price: 6 images × 0.04 USD = 0.24 USD; an estimate ({SOURCE}); "
        "--max-cost 0.10 has room for 2 images\n"
    ) in dry.stdout
    first = paid(*BATCH, "--max-cost", "0.1")
    assert first.returncode == 8
    assert (
        "error: 4 of 6 images are left. --max-cost 0.10 is reached with 0.08 USD; "
        "it holds for each run.\nhint: Run the same command again to go on: "
    ) in first.stderr
    assert f", for 0.08 USD (estimate; {SOURCE})" in first.stderr
    *images, cost = manifest_lines(tmp_path)
    assert [line["usd"] for line in images] == [0.04, 0.04]
    expected = {"images": 2, "unknown": 0, "usd": 0.08}
    prices = [{"images": 2, "usd": 0.04, "source": SOURCE}]
    assert cost["cost"] == expected | {"prices": prices}
    second = paid(*BATCH, "--max-cost", "1", "--events", "--json")
    assert second.returncode == 0, second.stderr
    events = [json.loads(line) for line in second.stderr.splitlines()]
    schema = json.loads((ROOT / "docs" / "events.schema.json").read_text())
    assert all(jsonschema.Draft202012Validator(schema).is_valid(event) for event in events)
    planned, finished = events[0], events[-1]
    assert planned["cost"]["usd"] == 0.16
    assert planned["cost"]["within"] == 4
    assert [event["usd"] for event in events if event["event"] == "image"] == [0.04] * 4
    assert finished["cost"]["usd"] == 0.16
    assert json.loads(second.stdout)["cost"] == finished["cost"]
    third = paid(*BATCH, "--max-cost", "0.01")
    assert third.returncode == 0, third.stderr


def test_failed_images_that_may_be_billed_are_counted(paid: Paid, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a withheld star\na quota star\nstar 1\nstar 2\n")
    done = paid(*BATCH, "--max-cost", "0.09", "--json")
    assert done.returncode == 8
    counts = json.loads(done.stdout)
    assert counts["made"] == 1
    assert counts["left"] == 1
    assert counts["cost"]["usd"] == 0.08
    usd = {str(line["status"]): line.get("usd") for line in manifest_lines(tmp_path)[:-1]}
    assert usd == {"withheld": 0.04, "failed": None, "done": 0.04}


def test_a_batch_above_1_usd_needs_consent(
    paid: Paid, environment: dict[str, str], tmp_path: Path
) -> None:
    refused = paid(*BATCH, price="0.2")
    assert refused.returncode == 2
    question = f"6 images cost 1.20 USD, by an estimate ({SOURCE})."
    assert f"error: {question} There is nobody to ask.\nhint: --yes agrees" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert paid(*BATCH, "--dry-run", price="0.2").returncode == 0
    env = environment | {"PRICE": "0.2"}
    for answer, code in (("\n", 2), ("y\n", 0)):
        typed = [("Go on? [y/N]", answer)]
        ended, _, shown = watched([*COMMAND, *BATCH], env=env, cwd=tmp_path, typed=typed)
        assert ended == code, shown
        assert "6 images cost 1.20 USD" in shown
        assert len(list((tmp_path / "out").glob("*.png"))) == (0 if code else 6)
    # Only what is missing counts.
    (tmp_path / "p.txt").write_text("".join(f"a red star number {n}\n" for n in range(11)))
    more = paid(*BATCH, price="0.2")
    assert more.returncode == 0, more.stderr
    again = paid(*BATCH, "--force", "--yes", price="0.2")
    assert again.returncode == 0, again.stderr


def test_an_unknown_price_is_said_to_be_unknown(paid: Paid, tmp_path: Path) -> None:
    dry = paid(*BATCH, "--dry-run", "--json", price="")
    cost = json.loads(dry.stdout)["cost"]
    assert (cost["images"], cost["unknown"], cost["usd"]) == (6, 6, None)
    limited = paid(*BATCH, "--max-cost", "5", price="")
    assert limited.returncode == 2
    assert "--max-cost cannot be kept: the price of 6 images is not known" in limited.stderr
    refused = paid(*BATCH, price="")
    assert refused.returncode == 2
    assert "6 images cost a sum that is not known" in refused.stderr
    made = paid(*BATCH, "--yes", price="")
    assert made.returncode == 0, made.stderr
    assert ", for 6 images at an unknown price (estimate; billed by nobody)" in made.stderr
    assert "0.00 USD" not in made.stderr
    assert manifest_lines(tmp_path)[0]["usd"] is None


def test_generate_tells_its_price_and_keeps_its_limit(paid: Paid, tmp_path: Path) -> None:
    star = ("generate", "a red star", "-n", "3")
    dry = paid(*star, "--dry-run")
    assert f"price: 3 images × 0.04 USD = 0.12 USD; an estimate ({SOURCE})\n" in dry.stdout
    cost = json.loads(paid(*star, "--dry-run", "--json").stdout)["plan"]["cost"]
    assert cost["usd"] == 0.12
    limited = paid(*star, "--max-cost", "0.1", "--json")
    assert limited.returncode == 8
    lines = [json.loads(line) for line in limited.stdout.splitlines()]
    assert [(line["usd"], line["price_source"]) for line in lines] == [(0.04, SOURCE)] * 2
    assert json.loads(limited.stderr.splitlines()[-1])["error"]["message"] == (
        "2 of 3 images were made, 1 left: --max-cost 0.10 is reached with 0.08 USD."
    )
    refused = paid(*star, price="0.4")
    assert refused.returncode == 2
    assert "3 images cost 1.20 USD" in refused.stderr
    made = paid(*star, "--yes", "--overwrite", price="0.4")
    assert made.returncode == 0, made.stderr
    assert f", for 1.20 USD (estimate; {SOURCE})" in made.stderr
    assert len(list(tmp_path.glob("*.png"))) >= 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generate", "x", "-m", "postcard", "--max-cost", "1"), "to the local backend"),
        (("batch", "p.txt", "-m", "postcard", "--max-cost", "1"), "to the local backend"),
        (("serve", "-m", "postcard", "--port", "0", "--max-cost", "1"), "to the local backend"),
        (("generate", "x", "--backend", "http", "--max-cost", "1"), "to the http backend"),
    ],
)
def test_a_limit_means_nothing_where_images_are_not_billed(
    t2i: T2I, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    (tmp_path / "p.txt").write_text("a star\n")
    done = t2i(*args)
    assert done.returncode == 2
    assert f"--max-cost means nothing {message}." in done.stderr
    assert "It is for --backend gemini or hf" in done.stderr


@pytest.mark.parametrize("amount", ["-5", "nan", "much"])
def test_a_limit_is_an_amount(t2i: T2I, amount: str) -> None:
    assert t2i("generate", "x", "--max-cost", amount).returncode == 2


def test_a_server_makes_no_more_once_its_limit_is_reached() -> None:
    backend = CostLimitedBackend(StubBackend(price=billed(0.4)), 1, fails_rest=True)
    with serving(backend) as server:
        asked = [
            httpx2.post(f"{server.url}/v1/images/generations", json={"prompt": "a star"})
            for _ in range(3)
        ]
    assert [answer.status_code for answer in asked] == [200, 200, 402]
    error = asked[-1].json()["error"]
    assert error["message"] == "The limit of 1.00 USD for images is reached; no more are made."
    assert "retry-after" not in asked[-1].headers
