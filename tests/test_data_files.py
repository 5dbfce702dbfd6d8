"""Files at hand and files from the network: found, whole and the right ones."""

import functools
import gzip
import http.server
import random
import threading
import zipfile

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from lm_data import TEXT, data_files, facts, fill, lm_files, lm_texts, record, sha, words

# ---------------------------------------------------------------- files at hand


def test_files_are_found_in_every_form(tmp_path):
    texts = words()
    archive = tmp_path / "zip" / "tiny.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for split, text in texts.items():
            file.writestr(f"tiny/tiny.{split}", text)
    sources = [
        archive.parent,
        fill(tmp_path / "folder" / "tiny", texts).parent,
        fill(tmp_path / "gz", {k: gzip.compress(v) for k, v in texts.items()}, "tiny.{}.gz"),
        fill(tmp_path / "short", texts, "{}.tokens"),
    ]
    texts_facts = facts("word", texts, "--archive", "tiny.zip", sha(b"any"), "--out", "x")
    corpus, _ = lm_files.parse(texts_facts)
    for number, source in enumerate(sources):
        dest = tmp_path / str(number)
        lm_texts.take(corpus, source, dest, verified=True, small=False)
        assert {path.name: path.read_bytes() for path in dest.iterdir()} == {
            f"{split}.txt": text for split, text in texts.items()
        }


def test_a_missing_file_is_named(tmp_path):
    corpus, _ = lm_files.parse(facts("word", words(), "--out", "x"))
    with pytest.raises(data_files.DataError, match=r"in does not hold tiny\.train"):
        lm_texts.take(corpus, fill(tmp_path / "in", {}), tmp_path, verified=True, small=False)


@pytest.mark.parametrize("damage", ["short archive", "short gzip", "wrong member"])
def test_damaged_files_are_refused(tmp_path, damage):
    source = fill(tmp_path / "in", {})
    if damage == "short gzip":
        (source / "tiny.all.gz").write_bytes(
            gzip.compress(bytes(random.Random(0).randbytes(999)))[:-9]
        )
    else:
        with zipfile.ZipFile(source / "tiny.zip", "w") as file:
            file.writestr("tiny.all" if damage == "short archive" else "other", b"text" * 99)
    if damage == "short archive":
        (source / "tiny.zip").write_bytes((source / "tiny.zip").read_bytes()[:-30])
    arguments = facts("byte", {"all": b"a"}, "--archive", "tiny.zip", "", "--out", "x")
    corpus, _ = lm_files.parse(arguments)
    wanted = "0 files called tiny.all" if damage == "wrong member" else "damaged .*fetch it again"
    with pytest.raises(data_files.DataError, match=wanted):
        lm_texts.take(corpus, source, tmp_path / "out", verified=False, small=False)
    assert not list((tmp_path / "out").glob("[!.]*"))


# ---------------------------------------------------------------- downloads


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; breaks the connection after `breaks` bytes of an answer, if that is set."""

    def __init__(self, shared, *rest):
        self.shared = shared
        super().__init__(*rest)

    def do_GET(self):
        body = self.shared["files"].get(self.path)
        if body is None:
            self.send_error(404)
            return
        asked = self.headers["Range"]
        self.shared["asked"].append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(body) and asked:
            self.send_error(416)
            return
        start = start if self.shared["ranges"] else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: self.shared["breaks"]])

    def log_message(self, *_):
        pass


@pytest.fixture
def served():
    """Return a server's settings and its address."""
    shared = {"files": {}, "asked": [], "breaks": None, "ranges": True}
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Server, shared)
    ) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        shared["url"] = f"http://127.0.0.1:{server.server_port}"
        yield shared
        server.shutdown()


def test_a_corpus_is_downloaded_once(tmp_path, served, capsys):
    served["files"]["/tiny.all"] = TEXT
    arguments = facts("byte", {"all": TEXT}, "--url", served["url"], "--out", tmp_path / "out")
    assert lm_files.main(arguments) == 0
    assert lm_files.main(arguments) == 0
    assert served["asked"] == [None]
    out = capsys.readouterr().out
    assert f"downloading {served['url']}/tiny.all" in out
    assert f"already in {tmp_path / 'out'}" in out
    assert record(tmp_path / "out")["source"] == served["url"]


def test_a_broken_download_goes_on(tmp_path, served):
    served["files"]["/a"] = TEXT
    served["breaks"] = 2000
    data_files.fetch(f"{served['url']}/a", tmp_path / "a", sha(TEXT))
    assert served["asked"] == [None, "bytes=2000-", "bytes=4000-"]
    assert (tmp_path / "a").read_bytes() == TEXT


def test_a_download_that_keeps_breaking_is_no_file_and_goes_on_later(tmp_path, served):
    served["files"]["/a"] = TEXT
    served["breaks"] = 1000
    with pytest.raises(data_files.DataError) as error:
        data_files.fetch(f"{served['url']}/a", tmp_path / "a", sha(TEXT))
    message = str(error.value)
    assert f"cannot download {served['url']}/a" in message
    assert "the connection broke after 3,000 of 5,000 bytes" in message
    assert "--from DIR" in message
    assert not (tmp_path / "a").exists()
    served["breaks"] = None
    data_files.fetch(f"{served['url']}/a", tmp_path / "a", sha(TEXT))
    assert served["asked"][-1] == "bytes=3000-"
    assert (tmp_path / "a").read_bytes() == TEXT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_beginning_that_does_not_fit_is_dropped(tmp_path, served, ranges):
    served["files"]["/a"] = TEXT
    served["ranges"] = ranges
    (tmp_path / ".a.part").write_bytes(b"x" * (6000 if ranges else 60))
    data_files.fetch(f"{served['url']}/a", tmp_path / "a", sha(TEXT))
    assert (tmp_path / "a").read_bytes() == TEXT


def test_another_file_is_refused_and_forgotten(tmp_path, served, capsys):
    served["files"]["/tiny.all"] = b"<html>Sign in</html>"
    arguments = facts("byte", {"all": TEXT}, "--url", served["url"], "--out", tmp_path / "out")
    assert lm_files.main(arguments) == 1
    error = capsys.readouterr().err
    assert f"{served['url']}/tiny.all is not the published file" in error
    assert sha(TEXT).replace(":", " ") in error
    assert "(20 bytes)" in error
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    served["files"]["/tiny.all"] = TEXT
    assert lm_files.main(arguments) == 0


def test_offline_and_missing(tmp_path, served, capsys):
    arguments = facts("byte", {"all": TEXT}, "--out", tmp_path / "out")
    assert lm_files.main([*arguments, "--url", served["url"]]) == 1
    missing = capsys.readouterr().err
    assert f"cannot download {served['url']}/tiny.all: HTTP Error 404" in missing
    assert served["asked"] == []
    assert lm_files.main([*arguments, "--url", "http://127.0.0.1:9"]) == 1
    offline = capsys.readouterr().err
    assert "cannot download http://127.0.0.1:9/tiny.all" in offline
    assert "refused" in offline
    assert "without network access" in offline
    assert "--from DIR" in offline
