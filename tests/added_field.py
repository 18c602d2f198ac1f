"""What a t2i with one more request field, `eta`, makes of it: facts in JSON on stdout.

tests/test_request_fields.py runs it with a copy of the program in which the field is declared.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from types import ModuleType

from t2i_cli.backends.http.discovery import ServerInfo
from t2i_cli.backends.vertex import payload
from t2i_cli.batch.options import BatchOptions, parse_vary
from t2i_cli.batch.rows import expand_rows
from t2i_cli.errors import InputError
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.output import filenames, infotext
from t2i_cli.output.filenames import TemplateContext
from t2i_cli.prompts import readers
from t2i_cli.prompts.entries import PromptEntry
from t2i_cli.request_fields import DIALECTS, DISPLAY_FIELDS
from t2i_cli.server import page
from t2i_cli.server.app import create_app
from t2i_cli.server.engine import Engine
from t2i_cli.server.options import ServerOptions
from tests import backends, factories
from tests.fakes.serving import serving
from tests.fakes.stub_backend import StubBackend

ROOT = Path(__file__).parent.parent


def rows() -> dict[str, object]:
    """JSONL, CSV and --vary."""
    read = [
        *readers.read_jsonl([b'{"prompt": "a", "eta": 0.5}']),
        *readers.read_csv([b"prompt,eta\n", b"b,0.7\n"]),
        *readers.read_jsonl([b'{"prompt": "c", "eta": "two"}']),
    ]
    entries = [entry for entry in read if isinstance(entry, PromptEntry)]
    varied = BatchOptions(vary=parse_vary(["eta=0.1,0.2"]))
    found, _ = expand_rows([PromptEntry(1, {"prompt": "d"})], varied, StubBackend())
    wrong = PromptEntry(1, {"prompt": "e", "eta": 9})
    _, problems = expand_rows([wrong], BatchOptions(), StubBackend())
    return {
        "read": [entry.values["eta"] for entry in entries],
        "wrong": [entry.message for entry in read if not isinstance(entry, PromptEntry)],
        "varied": [row.request.to_json()["eta"] for row in found],
        "ids": len({row.id for row in found}),
        "keys": len({row.request.batch_key() for row in found}),
        "refused": [problem.message for problem in problems],
        "shown": "eta" in DISPLAY_FIELDS,
    }


def server() -> dict[str, object]:
    """The server's bodies, and a request from one t2i to another over HTTP."""
    stub = StubBackend()
    document = create_app(Engine(stub, "postcard"), ServerOptions()).openapi()
    schemas = document["components"]["schemas"]
    with serving(stub) as there:
        client = backends.chosen("http", url=f"{there.url}/v1")
        asked = build_request({"prompt": "a red star", "eta": 0.5})
        settled = resolve_request(asked, client.describe(asked))
        [outcome] = client.run([settled], lambda _: None, Flag())
        client.close()
    return {
        "schemas": sorted(name for name, one in schemas.items() if "eta" in one["properties"]),
        "sent": [request.to_json().get("eta") for request in stub.made],
        "recorded": outcome.request.to_json()["eta"],
        "page": 'name="eta"' in page._render_fields(page._INPUTS_PLACEHOLDER),
    }


def told(call: Callable[[], object]) -> str:
    """The error's field and sentence."""
    try:
        call()
    except InputError as error:
        return f"{error.field}: {error.message}"
    return "nothing"


def remote() -> dict[str, object]:
    """A dialect that has no such field, and Vertex AI's instances."""
    other = ServerInfo(url="http://x/v1", dialect=DIALECTS["sglang"], models=["m"], facts={})
    asked = build_request({"prompt": "x", "eta": 0.5})
    request = factories.request(eta=0.5)
    sent = {s: payload.build_prediction_request(request, s, "png") for s in payload.TAKES}
    return {
        "refused": told(lambda: resolve_request(asked, other.model_spec("m"))),
        "vertex": [s for s, body in sent.items() if '"eta": 0.5' in json.dumps(body)],
    }


def records() -> dict[str, object]:
    """Names of files, records, ids, and the table in the docs."""
    request = factories.request(eta=0.5)
    image = TemplateContext(index=1, id="", request=request, format="png")
    text = infotext.format_infotext(request, factories.LOCK, (64, 48))
    again = infotext.parse_infotext(text)
    return {
        "name": filenames.render_template("{eta}-{seed}.png", image),
        "infotext": "Eta: 0.5" in text,
        "parsed": again and again.request["eta"],
        "ids": [
            factories.REQUEST.identity(),
            factories.REQUEST.identity(3, seed=7),
            request.identity(),
        ],
        "json": list(factories.REQUEST.to_json()),
        "docs": "`eta`" in _docs().fields_table(),
    }


def _docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    facts = [rows(), server(), remote(), records()]
    sys.stdout.write(json.dumps(facts))
