"""Hostile PDFs, read by the real readers in real processes; each has a few kilobytes to a few megabytes."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pypdf
import pytest

from sources.readers.pdf.sandbox import Extract, Limits, Sandbox
from tests.helpers.pdf_files import (
    CATALOG,
    FONT,
    document,
    flate_bomb,
    laughing_forms,
    one_page,
    page_tree,
    plain_book,
    stream,
)
from tests.helpers.text import REPOSITORY

KID = b"/Kids [4 0 R]"
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs Linux's /proc")


@pytest.fixture(scope="module")
def sandbox():
    with closing(Sandbox(Limits(cpu_seconds=20, wall_seconds=60))) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def good(texts) -> bytes:
    return plain_book([text.encode("ascii", "ignore").decode() for text in texts if 20 < text.count("\n") < 50][:6])


def write(folder: Path, data: bytes) -> Path:
    path = folder / "a.pdf"
    path.write_bytes(data)
    return path


def with_trailer(good: bytes, entry: bytes) -> bytes:
    return good.replace(b"/Root 1 0 R", entry)


HARMLESS = {
    "a page tree that contains itself": page_tree(b"<< /Type /Pages /Count 3 /Kids [2 0 R 4 0 R 2 0 R] >>"),
    "two thousand million pages": page_tree(b"<< /Type /Pages /Count 2147483647 /Kids [4 0 R] >>"),
    "fewer than no pages": page_tree(b"<< /Type /Pages /Count -5 /Kids [4 0 R] >>"),
    "nested arrays": page_tree(
        b"<< /Type /Pages /Count 1 /Kids [4 0 R] /A " + b"[" * 300_000 + b"]" * 300_000 + b" >>"
    ),
    "nested dictionaries": page_tree(
        b"<< /Type /Pages /Count 1 /Kids [4 0 R] " + b"/A <<" * 100_000 + b" >>" * 100_000 + b" >>"
    ),
    "a length beyond everything": one_page(
        b"<< /Length 99999999999999 >>\nstream\nBT /F1 9 Tf (A page that is there.) Tj ET\nendstream"
    ),
    "a length that is itself": one_page(
        b"<< /Length 5 0 R >>\nstream\nBT /F1 9 Tf (A page that is there.) Tj ET\nendstream"
    ),
}
DAMAGED = {
    "nothing": b"",
    "only a header": b"%PDF-1.4\n",
    "zeros": b"%PDF-1.4\n" + bytes(1_000_000),
    "a page tree that is only itself": page_tree(b"<< /Type /Pages /Parent 2 0 R /Count 100000 /Kids [2 0 R] >>"),
    "no pages": page_tree(b"<< /Type /Pages /Count 0 /Kids [] >>"),
    "a catalog that is a font": document([FONT, CATALOG]),
}


@pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS)
def test_odd_files_that_can_be_read(sandbox, tmp_path, data):
    extract = sandbox.read(write(tmp_path, data))
    assert (extract.status, extract.text) == ("text", "A page that is there.")


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_files_without_pages_are_damaged(sandbox, tmp_path, data):
    assert sandbox.read(write(tmp_path, data)) == Extract("damaged")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.97, 0.999])
def test_truncated_files_give_true_text_or_none(sandbox, tmp_path, good, share):
    whole = sandbox.read(write(tmp_path, good)).text
    extract = sandbox.read(write(tmp_path, good[: int(len(good) * share)]))
    assert extract.status == "damaged" or whole.startswith(extract.text)


def test_what_one_reader_cannot_read_the_other_may(sandbox, tmp_path, good):
    whole = sandbox.read(write(tmp_path, good))
    broken = write(tmp_path, good[: good.rindex(b"startxref")] + b"startxref\n7\n%%EOF\n")
    assert sandbox.read(broken) == whole  # pypdfium2 reads it
    lost_root = write(tmp_path, with_trailer(good, b"/Root 99 0 R"))  # only pypdf looks for another
    assert "".join(sandbox.read(lost_root).text.split()) == "".join(whole.text.split())
    assert sandbox.read(write(tmp_path, with_trailer(good, b"/Root 1 0 R /Prev 9"))).text == whole.text


def test_locked_files(sandbox, tmp_path, good):
    path = write(tmp_path, good)
    whole = sandbox.read(path).text
    for passwords, status in ((("secret", "owner"), "locked"), (("", "owner"), "text")):
        writer = pypdf.PdfWriter(clone_from=str(path))
        writer.encrypt(*passwords, algorithm="RC4-128")
        writer.write(tmp_path / "locked.pdf")
        extract = sandbox.read(tmp_path / "locked.pdf")
        assert (extract.status, extract.text) == (status, whole if status == "text" else "")


def test_bombs_end_at_the_memory_limit(tmp_path):
    texts = zlib.compress(b"BT /F1 9 Tf " + b"(spam) Tj " * 1_000_000 + b" ET", 9)
    bombs = [one_page(flate_bomb(layers=2, size=200_000_000)), one_page(stream(texts, b"/Filter /FlateDecode"))]
    with closing(Sandbox(Limits(memory=100 << 20))) as sandbox:
        for bomb in bombs:
            assert len(bomb) < 50_000
            assert sandbox.read(write(tmp_path, bomb)) == Extract("memory")
        server = sandbox._server
        assert server.poll() is None, "the child died, not the server"


def test_a_file_without_end_meets_the_processor_limit(tmp_path, good):
    with closing(Sandbox(Limits(cpu_seconds=1))) as sandbox:
        assert sandbox.read(write(tmp_path, laughing_forms(depth=9))) == Extract("time")
        assert sandbox.read(write(tmp_path, good)).status == "text"


def test_a_file_without_end_meets_the_clock(tmp_path, good):
    with closing(Sandbox(Limits(wall_seconds=0.7))) as sandbox:
        begin = time.perf_counter()
        assert sandbox.read(write(tmp_path, laughing_forms(depth=9))) == Extract("time")
        assert time.perf_counter() - begin < 2
        assert sandbox.read(write(tmp_path, good)).status == "text"


def test_sizes_have_limits(tmp_path, good):
    whole = Sandbox().read(write(tmp_path, good))
    with closing(Sandbox(Limits(file_bytes=len(good) - 1))) as sandbox:
        assert sandbox.read(write(tmp_path, good)) == Extract("size")
    with closing(Sandbox(Limits(pages=2))) as sandbox:
        extract = sandbox.read(write(tmp_path, good))
        assert (extract.num_pages, extract.read_pages) == (6, 2) and whole.text.startswith(extract.text)
    with closing(Sandbox(Limits(characters=1000))) as sandbox:
        extract = sandbox.read(write(tmp_path, good))
        assert len(extract.text) == 1000 and extract.read_pages < 6


@pytest.fixture
def running(tmp_path, monkeypatch):
    """A sandbox, and the number of the child that is reading a long file in it."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with closing(Sandbox()) as sandbox, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(sandbox.read, write(tmp_path, laughing_forms(depth=9)))
        child = wait_for(lambda: sandbox._server and children(sandbox._server.pid))[0]
        wait_for(lambda: "Max open files            0 " in Path(f"/proc/{child}/limits").read_text())
        yield sandbox, child
        os.kill(child, signal.SIGKILL)
        assert answer.result() == Extract("memory")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition, seconds: float = 5):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s")


@NEEDS_PROC
def test_a_child_holds_no_secrets_and_has_limits(running, tmp_path):
    sandbox, child = running
    for pid in (sandbox._server.pid, child):
        names = {entry.split(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if entry}
        assert names <= {b"PYTHONPATH", b"PYTHONUTF8", b"LD_LIBRARY_PATH"}
    limits = Path(f"/proc/{child}/limits").read_text()
    rows = {line[:25].strip(): line[25:].split()[:2] for line in limits.splitlines()[1:]}
    assert rows["Max core file size"] == rows["Max file size"] == rows["Max open files"] == ["0", "0"]
    assert rows["Max cpu time"] == ["120", "121"]
    assert 1 << 30 < int(rows["Max address space"][1]) < 3 << 29
    open_files = sorted(os.readlink(entry).split(":")[0] for entry in Path(f"/proc/{child}/fd").iterdir())
    assert open_files == sorted(["pipe", "/dev/null", str(tmp_path / "a.pdf")])


@NEEDS_PROC
def test_no_process_outlives_its_parent(tmp_path, good):
    write(tmp_path, laughing_forms(depth=9))
    script = (
        "import sys, threading, time; from pathlib import Path; from sources.readers.pdf.sandbox import Sandbox; "
        "s = Sandbox(); threading.Thread(target=s.read, args=(Path(sys.argv[1]),), daemon=True).start()\n"
        "while s._server is None: time.sleep(0.01)\n"
        "print(s._server.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.pdf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True) as parent:
        server = int(parent.stdout.readline())
        child = wait_for(lambda: children(server))[0]
        parent.kill()
    for pid in (server, child):
        wait_for(lambda pid=pid: not alive(pid))


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")")[1].split()[0] != "Z"


def test_a_server_that_died_is_started_again(sandbox, tmp_path, good):
    path = write(tmp_path, good)
    before = sandbox.read(path)
    os.killpg(sandbox._server.pid, signal.SIGKILL)
    assert sandbox.read(path) == before


def _read_elsewhere(sandbox: Sandbox, path: Path, results) -> None:
    results.put((os.getpid(), sandbox.read(path)))


def test_threads_and_processes_share_a_sandbox(sandbox, tmp_path, good):
    path = write(tmp_path, good)
    expected = sandbox.read(path)
    server = sandbox._server
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        results = context.Queue()
        workers = [context.Process(target=_read_elsewhere, args=(sandbox, path, results)) for _ in range(2)]
        for worker in workers:
            worker.start()
        assert [results.get(timeout=60)[1] for _ in workers] == [expected] * 2
        for worker in workers:
            worker.join()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(sandbox.read, [path] * 12)) == [expected] * 12
    assert sandbox._server is server, "a worker's end is not this process's server's"
    assert pickle.loads(pickle.dumps(sandbox)).limits == sandbox.limits


def test_an_answer_is_not_trusted():
    assert Extract.unpack(b"") == Extract.unpack(b"\xff" * 40) == Extract("damaged")
    extract = Extract("text", "h\u00e9 \U0001f600", 3, 2, 1)
    assert Extract.unpack(extract.pack()) == extract
    assert Extract.unpack(extract.pack()[:-1]).text.startswith("h\u00e9")
