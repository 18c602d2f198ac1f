"""Every `sh` block of the README and the pages, run in order as a reader types it."""

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import Starter
from tests.fakes.vertex import FakeVertex

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_CI = ("README", "batch", "prompts", "remote", "serve")
"""Pages that CI runs; `make full` runs all."""
ELSEWHERE = {
    r"pip install|-m pytest|-m mutmut": "CI itself runs these",
    r"^gcloud |^ +--|^ +monitoring\.": "needs a Google account",
    r"t2i login": "asks for a token",
    r"-m (sdxl|flux-schnell|gpt-image-1)\b": "downloads gigabytes, or needs an account",
    r"t2i remote (build|package)|vertex_image|--serving torchserve": "builds an image or downloads",
    r"--backend (gemini|hf)": "is billed by the image",
    r"--endpoint 1234567890": "names an endpoint of one's own",
    r" --show": "draws on a terminal",
    r"https://api\.openai\.com": "needs an account",
    r"^git |^gh |^python -m build|^\(cd|twine|^docker |^make |^bin/t2i|^pip ": "makes a release",
}
"""Lines that cannot run on loopback, and why."""
CONSENT = re.compile(r"t2i (remote (?:deploy|down|resume|run)|batch .*--ephemeral)")
"""Commands that ask on a terminal; here they are told yes."""
PRELUDE = """
set -eo pipefail
server=
stop() { [ -z "$server" ] || { kill "$server"; wait "$server" || true; server=; }; }
trap stop EXIT
listening() {
    for _ in {1..1200}; do
        if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
        kill -0 "$server" || { cat serve.log; return 1; }
        sleep 0.1
    done
    return 1
}
"""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def blocks(page: Path) -> list[str]:
    """The page's `sh` blocks, after the text files that a block's first comment names."""
    found = re.findall(r"^```(sh|text)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    code = []
    for kind, text in found:
        if kind == "sh":
            code.append(text)
        elif named := re.match(r"# ([\w-]+\.txt)\b", text):
            code.append(f"cat > {named[1]} <<'END'\n{text}END\n")
    return code


def program(page: Path, ports: Mapping[str, int]) -> str:
    """One shell program of the page's blocks, without the lines that cannot run here."""
    text = re.sub(r" *\\\n *", " ", "".join(blocks(page)))
    if "t2i serve -m" not in text and re.search(r":7860\b", text):
        text = f"t2i serve -m postcard\n{text}"  # A page on clients takes the server for granted.
    lines: list[str] = []
    last: list[str] = []
    for line in text.splitlines():
        if any(re.search(pattern, line) for pattern in ELSEWHERE):
            continue
        line = CONSENT.sub(r"t2i \1 --yes", re.sub(r"^\.venv/bin/", "", line))
        line = re.sub(r"http://(gpu-box|cluster):\d+", "http://127.0.0.1:7860", line)
        for port, free in ports.items():
            line = line.replace(port, str(free))
        if re.match(r"(\w+=\S+ )*t2i serve", line):
            free = next((free for free in ports.values() if str(free) in line), ports["7860"])
            command = re.sub(r"\s*(&|#.*)?$", "", line)
            command = command if str(free) in command else f"{command} --port {free}"
            line = f"stop; {command} >serve.log 2>&1 & server=$!\nlistening {free}"
        # Who reads on still has the endpoint.
        (last if "t2i remote down" in line else lines).append(line)
    return "\n".join([PRELUDE, *lines, *last, ""])


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.stem in IN_CI else pytest.mark.full) for page in PAGES],
    ids=lambda page: page.stem,
)
def test_the_page_s_commands_run(
    page: Path, t2i_env: dict[str, str], vertex: FakeVertex, tmp_path: Path, t2i_starter: Starter
) -> None:
    if not any(line.strip() for line in blocks(page)):
        pytest.skip("The page has no commands.")
    if page.stem in ("testing", "releasing"):
        pytest.skip("These commands run the tests, or make a release.")
    ports = {"7860": free_port(), "8080": free_port()}
    command = tmp_path / "bin" / "t2i"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.join(t2i_starter.command(t2i_env))} "$@"\n')
    command.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    if page.stem not in ("README", "batch"):  # These say how a prompts file is made.
        (work / "prompts.txt").write_text("a red star\na blue heart\n")
        (work / "prompts.jsonl").write_text('{"prompt": "a red star"}\n')
    missing = [name for name in ("curl", "jq") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"There is no {missing[0]}.")
    vertex.regions = {"us-central1", "us-east4", "europe-west4"}
    env = t2i_env | (vertex.environment if page.stem in ("remote", "README") else {})
    env |= {
        "PATH": f"{command.parent}{os.pathsep}{t2i_env['PATH']}",
        "PROMPT": "a red star",
        "T2I_STEPS": "2",
    }
    done = subprocess.run(
        ["bash", "-c", program(page, ports)],
        cwd=work,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert "Traceback" not in done.stderr
    assert vertex.left() == {}
