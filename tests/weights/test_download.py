"""Downloads from a local server that breaks off, ignores Range, gives another file, or has none."""

import fcntl
import hashlib
import http.server
import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adir.errors import InputError
from adir.weights import download
from adir.weights.download import fetch, readable_size

CONTENT = bytes(range(256)) * 4000  # 1.024 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The path says how the server behaves; `requests` of the server what was asked, as (path,
    Range).
    """

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))  # type: ignore[attr-defined]
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if self.path == "/none":
            self.send_error(404)
        elif self.path == "/other":
            self.answer(b"<html>please log in</html>", 0)
        elif self.path == "/longer":
            self.answer(CONTENT + b"!", 0)
        elif self.path == "/no_range":
            self.answer(CONTENT, 0)
        elif self.path == "/wrong_range":
            self.answer(CONTENT, first // 2)
        elif self.path == "/refuses_range" and asked:
            self.send_error(416)
        elif self.path == "/breaks":  # gives 300 kB a time
            self.answer(CONTENT, first, stop=first + 300_000)
        elif self.path == "/breaks_once" and len(self.server.requests) == 1:  # type: ignore[attr-defined]
            self.answer(CONTENT, first, stop=300_000)
        elif self.path == "/silent":
            self.answer(CONTENT, first, stop=first)
        elif self.path == "/unknown_length":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.answer(CONTENT, first)

    def answer(self, content: bytes, first: int, stop: int | None = None) -> None:
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first:stop])

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of a client that hangs up."""

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def url(server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "network.pt"


def others(target: Path) -> list[str]:
    """Names beside the target."""
    return sorted(path.name for path in target.parent.iterdir() if path != target)


@pytest.mark.parametrize(
    "path", ["/good", "/no_range", "/unknown_length", "/breaks", "/breaks_once"]
)
def test_the_file_arrives_whole_and_alone(url, target, path):
    fetch(target, [url + path], SHA256, len(CONTENT))
    assert target.read_bytes() == CONTENT and others(target) == []


def test_each_request_after_a_break_asks_for_the_rest_only(url, server, target):
    fetch(target, [url + "/breaks"], SHA256)
    # 1 024 000 bytes, 300 000 a time.
    asked = [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert server.requests == [("/breaks", value) for value in asked]


def test_a_break_is_resumed_by_a_later_call_and_from_another_mirror(
    url, server, target, monkeypatch
):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(
        InputError,
        match=r"the connection broke after 300 kB of 1.02 MB.*the first 300 kB are saved",
    ):
        fetch(target, [url + "/breaks"], SHA256)
    assert not target.exists() and others(target) == ["network.pt.part"]
    fetch(target, [url + "/good"], SHA256)
    assert target.read_bytes() == CONTENT and others(target) == []
    assert server.requests == [("/breaks", None), ("/good", "bytes=300000-")]


@pytest.mark.parametrize("path", ["/no_range", "/refuses_range"])
def test_a_server_that_knows_no_ranges_starts_again(url, target, path):
    target.parent.mkdir()
    target.with_name("network.pt.part").write_bytes(CONTENT[:5000])
    fetch(target, [url + path], SHA256)
    assert target.read_bytes() == CONTENT


def test_a_server_that_answers_with_another_range_is_found_out_by_the_hash(url, target):
    target.parent.mkdir()
    target.with_name("network.pt.part").write_bytes(CONTENT[:5000])
    fetch(target, [url + "/wrong_range"], SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("rest", [b"another file's start", CONTENT + b"!", b"x" * len(CONTENT)])
def test_what_is_left_of_another_file_is_replaced(url, target, rest):
    target.parent.mkdir()
    target.with_name("network.pt.part").write_bytes(rest)
    fetch(target, [url + "/good"], SHA256, len(CONTENT))
    assert target.read_bytes() == CONTENT and others(target) == []


def test_a_whole_part_needs_no_request(url, server, target):
    target.parent.mkdir()
    target.with_name("network.pt.part").write_bytes(CONTENT)
    fetch(target, [url + "/none"], SHA256, len(CONTENT))
    assert target.read_bytes() == CONTENT and server.requests == []


def test_a_mirror_without_the_file_or_with_another_gives_way_to_the_next(url, server, target):
    fetch(target, [url + "/none", url + "/other", url + "/silent", url + "/good"], SHA256)
    assert target.read_bytes() == CONTENT
    (aside,) = others(target)
    assert aside.startswith("network.pt.part.corrupt-")
    assert (target.parent / aside).read_bytes().startswith(b"<html>")


def test_when_all_mirrors_fail_one_line_says_why_of_each_and_nothing_is_there(url, target):
    with pytest.raises(InputError) as raised:
        fetch(target, [url + "/none", url + "/other", "http://127.0.0.1:1/refused"], SHA256)
    message = str(raised.value)
    assert "\n" not in message and not target.exists()
    for part in (
        "network.pt",
        "/none (HTTP 404",
        "/other (the downloaded file has SHA-256",
        "refused",
        str(target.parent),
    ):
        assert part in message


@pytest.mark.parametrize("path", ["/other", "/longer"])
def test_a_file_of_another_length_is_refused_before_it_is_downloaded(url, target, path):
    with pytest.raises(InputError, match=rf"bytes instead of {len(CONTENT)}"):
        fetch(target, [url + path], SHA256, len(CONTENT))
    assert others(target) == []


def test_the_start_of_a_hash_is_enough_where_a_publisher_gives_no_more(url, target):
    fetch(target, [url + "/good"], SHA256[:8])
    assert target.read_bytes() == CONTENT


def test_progress_rises_to_the_size(url, target, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 100_000)
    steps: list[tuple[int, int | None]] = []
    fetch(
        target,
        [url + "/breaks_once"],
        SHA256,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (len(CONTENT), len(CONTENT)) and {total for _, total in steps} == {
        len(CONTENT)
    }
    assert all(a[0] < b[0] for a, b in itertools.pairwise(steps))


def test_two_processes_do_not_write_one_file(url, target):
    target.parent.mkdir()
    with open(target.with_name("network.pt.part"), "a+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is downloading"):
            fetch(target, [url + "/good"], SHA256)


def test_a_full_disk_is_noticed_before(url, target, monkeypatch):
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})()
    )
    with pytest.raises(InputError, match=r"1\.02 MB are needed, but only 1 kB are free"):
        fetch(target, [url + "/good"], SHA256)


def test_sizes_for_people():
    assert [readable_size(n) for n in (2211383297, 108_600_000, 6000, 12)] == [
        "2.21 GB",
        "109 MB",
        "6 kB",
        "12 bytes",
    ]


# --- the caller's network: HF_ENDPOINT, proxies, and servers that hold a connection without giving
# anything


ON_THE_HUB = "https://huggingface.co/someone/networks/resolve/main/network.pt"


@pytest.mark.parametrize("end", ["", "/", "/hub/"])
def test_an_address_of_the_hub_is_asked_of_the_endpoint_of_the_environment(
    url, server, target, monkeypatch, end
):
    monkeypatch.setenv("HF_ENDPOINT", url + end)
    fetch(target, [ON_THE_HUB], SHA256)
    assert target.read_bytes() == CONTENT
    prefix = end.rstrip("/")
    assert server.requests == [(f"{prefix}/someone/networks/resolve/main/network.pt", None)]


def test_an_address_elsewhere_is_none_of_the_endpoints_business(url, server, target, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    fetch(target, [url + "/good"], SHA256)
    assert server.requests == [("/good", None)]


@pytest.mark.parametrize("endpoint", ["hf-mirror.com", "127.0.0.1:8000", "ftp://mirror"])
def test_an_endpoint_that_is_no_address_is_one_line(target, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InputError, match=f"HF_ENDPOINT={endpoint} is not an address"):
        fetch(target, [ON_THE_HUB], SHA256)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_a_proxy_is_asked_in_place_of_the_server(url, server, target, monkeypatch, variable):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, url)
    fetch(target, ["http://far.example/network.pt"], SHA256)
    assert target.read_bytes() == CONTENT
    assert server.requests == [
        ("http://far.example/network.pt", None)
    ]  # as a proxy is asked: the whole address


def test_a_server_of_no_proxy_is_asked_itself(url, server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(target, [url + "/good"], SHA256)
    assert server.requests == [("/good", None)]


def test_what_is_waited_for_is_said_before_and_a_silent_server_is_left(target, monkeypatch, capsys):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as silent:  # takes the connection, and never answers
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match="timed out"):
            fetch(target, [f"http://{place}/network.pt"], SHA256)
    assert capsys.readouterr().err == f"downloading network.pt from {place}\n"
