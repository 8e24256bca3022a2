import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from textautograd.data import BBH, GSM8K, LIAR, download
from textautograd.errors import DataError

GSM8K_FILE = b'{"question": "q", "answer": "#### 1,000"}\n'
BBH_FILE = json.dumps({"examples": [{"input": "q", "target": "a"}]}).encode()
LIAR_FILE = b"\t".join([b"1.json", b"true", *[b"text"] * 12]) + b"\n"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/") + ".tsv", content)
    return buffer.getvalue()


class Site:
    """A loopback server: `replies` by path, each bytes or a function of the handler."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.replies: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[str] = []


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.requests.append(self.path)
            reply = here.replies.get(self.path)
            if reply is None:
                self.send_error(404)
            elif isinstance(reply, bytes):
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)
            else:
                reply(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        here = Site(f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setitem(download.ADDRESSES, "gsm8k", here.address + "/gsm8k/{name}.jsonl")
        monkeypatch.setitem(download.ADDRESSES, "bbh", here.address + "/bbh/{name}.json")
        monkeypatch.setitem(download.ADDRESSES, "liar", here.address + "/liar.zip")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield here
        server.shutdown()
        thread.join()


def assert_refused(root: Path, site: Site, cause: str) -> None:
    """The error names address, cause and way out, and nothing is left behind."""
    with pytest.raises(DataError, match=cause) as caught:
        GSM8K(root, "test", download=True)
    assert f"{site.address}/gsm8k/test.jsonl" in str(caught.value)
    assert f"Way out: fetch it by other means and save it as {root}" in str(caught.value)
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_each_dataset_fetches_its_file(tmp_path: Path, site: Site) -> None:
    site.replies = {
        "/gsm8k/test.jsonl": GSM8K_FILE,
        "/bbh/navigate.json": BBH_FILE,
        "/liar.zip": zipped(train=b"", valid=LIAR_FILE, test=b""),
    }
    root = tmp_path / "new" / "root"
    assert GSM8K(root, "test", download=True)[0].answer == "1000"
    assert BBH(root, "navigate", download=True)[0].answer == "a"
    assert LIAR(root, "valid", download=True)[0].answer == "Yes"
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert files == {
        os.path.join("gsm8k", "test.jsonl"): GSM8K_FILE,
        os.path.join("bbh", "navigate.json"): BBH_FILE,
        os.path.join("liar", "valid.tsv"): LIAR_FILE,
    }


def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path, site: Site) -> None:
    site.replies = {"/gsm8k/test.jsonl": GSM8K_FILE}
    for _ in range(2):
        GSM8K(tmp_path, "test", download=True)
    GSM8K(tmp_path, "test")
    assert site.requests == ["/gsm8k/test.jsonl"]


def test_without_download_nothing_is_asked_for(tmp_path: Path, site: Site) -> None:
    with pytest.raises(DataError, match="no such file"):
        GSM8K(tmp_path, "test")
    assert site.requests == []


def test_others_may_read_a_file_as_the_umask_says(tmp_path: Path, site: Site) -> None:
    site.replies = {"/gsm8k/test.jsonl": GSM8K_FILE}
    (tmp_path / "plain").touch()
    GSM8K(tmp_path, "test", download=True)
    fetched = (tmp_path / "gsm8k" / "test.jsonl").stat().st_mode
    assert fetched == (tmp_path / "plain").stat().st_mode


def test_http_status(tmp_path: Path, site: Site) -> None:
    assert_refused(tmp_path, site, "HTTP status 404 Not Found")


def test_nobody_listens(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        site.address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setitem(download.ADDRESSES, "gsm8k", site.address + "/gsm8k/{name}.jsonl")
        assert_refused(tmp_path, site, "refused")


def test_a_reply_cut_short(tmp_path: Path, site: Site) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(2 * len(GSM8K_FILE)))
        handler.end_headers()
        handler.wfile.write(GSM8K_FILE)

    size = len(GSM8K_FILE)
    site.replies = {"/gsm8k/test.jsonl": cut}
    assert_refused(tmp_path, site, f"cut off after {size} of {2 * size} bytes")


def test_a_chunked_reply_cut_short(tmp_path: Path, site: Site) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(GSM8K_FILE), GSM8K_FILE))
        handler.close_connection = True

    site.replies = {"/gsm8k/test.jsonl": cut}
    assert_refused(tmp_path, site, "IncompleteRead")


def test_a_reply_that_is_no_http(tmp_path: Path, site: Site) -> None:
    def greet(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"hello\r\n\r\n")

    site.replies = {"/gsm8k/test.jsonl": greet}
    assert_refused(tmp_path, site, "hello")


def test_a_file_too_large(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LIMIT", len(GSM8K_FILE) - 1)
    site.replies = {"/gsm8k/test.jsonl": GSM8K_FILE}
    assert_refused(tmp_path, site, f"more than {len(GSM8K_FILE) - 1} bytes")


def test_a_silent_server(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE", 0.1)
    site.replies = {"/gsm8k/test.jsonl": lambda handler: time.sleep(0.5)}
    assert_refused(tmp_path, site, "timed out")


def test_a_trickling_server(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(50):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.02)

    monkeypatch.setattr(download, "DEADLINE", 0.1)
    site.replies = {"/gsm8k/test.jsonl": trickle}
    assert_refused(tmp_path, site, "not complete after 0.1 s")


def test_a_page_that_is_not_the_file_is_not_kept(tmp_path: Path, site: Site) -> None:
    site.replies = {"/gsm8k/test.jsonl": b"<html>Log in</html>"}
    assert_refused(tmp_path, site, "line 1: expected a JSON object")


@pytest.mark.parametrize(
    ("archive", "cause"),
    [
        (zipped(train=LIAR_FILE), "no member 'valid.tsv'; it holds train.tsv"),
        (zipped(liar__valid=LIAR_FILE), "no member 'valid.tsv'; it holds liar/valid.tsv"),
        (zipped(), "no member 'valid.tsv'; it holds nothing"),
        (b"<html>Log in</html>", "not a usable zip archive"),
        (zipped(valid=LIAR_FILE)[:-30], "not a usable zip archive"),
        (zipped(valid=LIAR_FILE).replace(b"valid.tsv", b"valid.tsw", 1), "not a usable zip"),
        (zipped(valid=bytes(10_000)), "valid.tsv has more than 5000 bytes"),
    ],
)
def test_archives_without_the_file(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, archive: bytes, cause: str
) -> None:
    monkeypatch.setattr(download, "LIMIT", 5000)
    site.replies = {"/liar.zip": archive}
    with pytest.raises(DataError, match=cause) as caught:
        LIAR(tmp_path, "valid", download=True)
    assert f"{site.address}/liar.zip" in str(caught.value)
    assert "Way out: take valid.tsv out of it and save it as" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_only_the_wanted_member_is_unpacked(tmp_path: Path, site: Site) -> None:
    site.replies = {"/liar.zip": zipped(valid=LIAR_FILE, train=LIAR_FILE, **{"..__x": b"x"})}
    LIAR(tmp_path / "root", "valid", download=True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["valid.tsv"]


def test_a_root_that_cannot_be_written(tmp_path: Path, site: Site) -> None:
    site.replies = {"/gsm8k/test.jsonl": GSM8K_FILE}
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "gsm8k").symlink_to(tmp_path / "nowhere" / "far")
    with pytest.raises(DataError, match="cannot be written"):
        GSM8K(tmp_path / "root", "test", download=True)


def test_the_file_appears_whole(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        (part,) = (tmp_path / "gsm8k").iterdir()
        assert part.name != "test.jsonl" and part.stat().st_size
        raise OSError("disk full")

    site.replies = {"/gsm8k/test.jsonl": GSM8K_FILE}
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"test\.jsonl: cannot be written: disk full"):
        GSM8K(tmp_path, "test", download=True)
    assert list((tmp_path / "gsm8k").iterdir()) == []


def test_import_brings_nothing_that_only_a_download_needs() -> None:
    # A stand-in for the package itself, so that only this layer's imports count.
    code = (
        "import sys, types\n"
        "package = sys.modules['textautograd'] = types.ModuleType('textautograd')\n"
        f"package.__path__ = [{str(Path(download.__file__).parents[1])!r}]\n"
        "import textautograd.data\n"
        "print({'urllib.request', 'http.client', 'zipfile', 'socket'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.strip() == b"set()"
