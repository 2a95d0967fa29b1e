"""What stands in for the calls that an operating system or a file system lacks, by simulation."""

import ctypes
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from lib import files, system
from lib.files import StoreError
from lib.runs import attempt, children


def refuse(kind, code):
    """An ``os.fsync`` that refuses files, or folders, with an error."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (kind == "folder"):
            raise OSError(code, os.strerror(code))
        return real(descriptor)

    return fsync


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_memory_is_kept_where_the_library_can_and_else_nothing_happens(error, monkeypatch):
    said = []

    class Library:
        def __init__(self, name):
            pass

        def mallopt(self, *values):
            said.append(values)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    system.keep_memory()
    assert said == list(system.HEAP.items())

    def refuse(self, *values):
        raise error

    monkeypatch.setattr(Library, "mallopt", refuse)
    system.keep_memory()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_no_error_but_a_file_is(code, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse("folder", code))
    files.write(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", refuse("file", code))
    with pytest.raises(StoreError, match="cannot be written"):
        files.write(tmp_path / "a", b"other")
    assert (tmp_path / "a").read_bytes() == b"content"


def test_a_folder_that_fails_to_sync_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse("folder", errno.EIO))
    with pytest.raises(StoreError, match="cannot be written"):
        files.write(tmp_path / "a", b"content")


def test_windows_opens_no_folder_and_waits_for_readers(tmp_path, monkeypatch):
    real, refusals = os.replace, [PermissionError(13, "in use")] * 2

    def replace(source, target):
        if refusals:
            raise refusals.pop()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        system.replace(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(sys, "platform", "win32")
    refusals.append(PermissionError(13, "in use"))
    monkeypatch.setattr(os, "open", refuse)  # nothing opens a folder
    (tmp_path / "new").write_bytes(b"x")
    system.replace(tmp_path / "new", tmp_path / "b")
    system.sync_folder(tmp_path)
    assert (tmp_path / "b").read_bytes() == b"x" and not refusals


def test_no_fork_where_it_is_not_safe_or_refused(monkeypatch):
    def no_fork():
        raise OSError("fork is not safe here")

    monkeypatch.setattr(os, "fork", no_fork)
    assert system.fork() is None
    monkeypatch.setattr(system, "FORKS", False)
    monkeypatch.delattr(os, "fork")
    assert system.fork() is None


def test_slots_follow_the_quota_and_need_no_affinity(monkeypatch):
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    assert 1 <= system.cpus() <= os.cpu_count()
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # as the quota of a container does
    assert system.cpus() == 1


def test_a_processor_without_a_name_is_unknown(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    assert system.processor()
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(subprocess, "check_output", missing)
    monkeypatch.setattr("platform.processor", lambda: "")
    for name in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", name)
        assert system.processor() is None


def test_a_process_id_alone_says_nothing():
    born = system.born()
    assert system.lives(os.getpid(), born) and system.lives(os.getpid())
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not system.lives(other.pid, system.born(other.pid) - 60)
        system.end(other.pid, system.born(other.pid) - 60)
        assert system.lives(other.pid)
        system.end(other.pid, system.born(other.pid), at_once=True)
        other.wait(30)
        assert system.born(other.pid) is None
    finally:
        other.kill()


def test_what_one_child_said_leaves_no_trace_in_the_next(tmp_path):
    said = []
    try:
        for request in ({"seed": -1}, {"seed": -2}):
            with children.slot() as server:
                server.start(attempt.Request((request,), str(tmp_path)))
                assert server.wait() == attempt.INVALID
                said.append(server.errors())
    finally:
        children.close()
    assert [text[:10] for text in said] == ["seed is -1", "seed is -2"]


def test_an_error_ends_the_child_and_its_server(tmp_path):
    config = tiny.config(epochs=1000)
    with pytest.raises(KeyError), children.slot() as server:
        server.start(attempt.Request((config.to_dict(),), str(tmp_path), backend="reference"))
        raise KeyError("of whoever watches the child")
    assert not system.lives(server.pid) and not children._idle


@pytest.mark.parametrize(
    ("code", "errors", "message"),
    [
        (-9, "a remark", "a remark\nended by signal 9"),
        (-9, "", "ended by signal 9"),
        (1, "", "ended with code 1"),
        (1, "ValueError: no", "ValueError: no"),
    ],
)
def test_a_message_says_how_a_child_ended(code, errors, message, tmp_path, monkeypatch):
    ended = SimpleNamespace(
        start=lambda _: None, wait=lambda _: code, errors=lambda: errors, alive=False
    )
    monkeypatch.setattr(children, "Server", lambda: ended)
    request = attempt.Request((tiny.config().to_dict(),), str(tmp_path))
    assert children.work(request).message == message


def test_children_without_a_fork_and_beyond_1024_descriptors(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    (tmp_path / "sitecustomize.py").write_text(
        "import os\ndef fork():\n    raise OSError('not safe')\nos.fork = fork\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2000, hard)), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with children.slot() as server:
            server.start(attempt.Request(({"seed": -1},), str(tmp_path)))
            assert server.wait() == 2 and "seed is -1" in server.errors()
            with pytest.raises(OSError, match="ended"):
                server.start(attempt.Request())
        with children.slot() as other:
            assert other is not server  # the one that trained has ended
    finally:
        children.close()
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
