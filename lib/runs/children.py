"""Training processes that start at once: forked from a server that has imported torch and the
training, and does nothing else.

Importing costs several seconds of a core, more than a short run takes. A server runs one child at a
time, stays single-threaded and touches neither autograd nor a GPU, so that its forks are as good as
new processes. Where forking is not safe the server trains one request itself, and another one
serves the next. Both hang on one pipe, their standard input: a line asks for a training, an empty
line asks it to save its state and end; when the process at the other end dies, the child ends, and
then the server.
"""

import _thread
import asyncio
import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass

from lib import paths
from lib.runs import attempt, files, system

KILLED = -9


@dataclass(frozen=True)
class Ending:
    """How one attempt in a child process ended."""

    code: int  # of `lib.runs.attempt`; negative for a signal
    message: str = ""  # the end of what it printed
    step: int = -1  # of its newest checkpoint


def command(call):
    """Command of a Python that runs a call of this module, from the code that runs here: neither
    the working folder nor an installed copy decides which ``lib`` it is.
    """
    path = [str(paths.project_root()), *map(os.path.abspath, sys.path)]
    code = f"import sys; sys.path[:] = {path!r}; from lib.runs import children; children.{call}"
    return [sys.executable, "-c", code]


class Server:
    """A slot for training processes of so many threads: ``start`` one, ``wait`` for its end, start
    the next while it is `alive`.
    """

    def __init__(self, threads=1):
        self.alive, self.pid = True, None
        self._errors = tempfile.TemporaryFile("a+b")
        self._process = subprocess.Popen(
            command("serve()"),
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            **system.OWN_SESSION,
        )
        self._said = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self._process.stdout:
            self._said.put(int(line))
        self._said.put(None)

    def start(self, request):
        """Start a child for one request of `lib.runs.attempt.run_request`.

        Raises
        ------
        OSError
            The server is gone.
        """
        self._errors.truncate(0)
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self.pid = self._said.get()
        if self.pid is None:
            self.alive = False
            ended = "The server of the training processes ended."
            raise ConnectionResetError(f"{ended} {self.errors()}".strip())

    def wait(self, timeout=None):
        """Exit code of the child (negative for a signal), or None if it still runs after so many
        seconds.
        """
        try:
            code = self._said.get(timeout=timeout)
        except queue.Empty:
            return None
        if code is None:  # the server was killed, and its child goes with it
            self.alive = False
            self.kill()
            return KILLED
        return code

    def stop(self):
        """Ask the child to save its state and end."""
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"\n")

    def kill(self):
        """End the child at once."""
        if self.pid is not None:
            system.end(self.pid, at_once=True)

    def errors(self, length=1500):
        """The end of what the child printed to standard error."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - length))
        return self._errors.read().decode(errors="replace").strip()


class Servers:
    """The servers of this process whose child has ended, to be used again."""

    def __init__(self):
        self._idle = {}

    @contextlib.contextmanager
    def one(self, threads):
        """A server for children of so many threads; it is kept while it is alive."""
        idle = self._idle.setdefault(threads, [])
        server = idle.pop() if idle else Server(threads)
        try:
            yield server
        finally:
            if server.alive:
                idle.append(server)


SERVERS = Servers()


# In the processes that are started here


def serve():
    """For each request, a line on standard input: fork a child, print its pid and, when it has
    ended, its exit code; where forking is not safe be that child, once.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a training prints is no answer
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    # Here, so that the children need not: what reading data and training import, and what is kept.
    from sklearn import datasets, model_selection  # noqa: F401

    from lib import compiled, train  # noqa: F401

    files.fingerprint()

    while request := _line():
        if json.loads(request).get("backend") != "reference":
            compiled.expect()
        pid = system.fork()
        if pid == 0:
            os.close(answers.fileno())  # the server's end must be noticed
            os._exit(_train(request))
        with contextlib.suppress(BrokenPipeError):  # nobody asks any more
            print(pid or os.getpid(), file=answers, flush=True)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else _train(request)
            print(code, file=answers, flush=True)
        if pid is None:
            break
    os._exit(0)  # at once: taking torch down is slow


def _line():
    """The next request; nothing beyond the line is read: the rest is for the child."""
    line = bytearray()
    while (byte := os.read(0, 1)) != b"":
        if byte != b"\n":
            line += byte
        elif line:  # an empty line came too late for its child
            return line
    return b""


def _train(request):
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    threading.Thread(target=_obey, daemon=True).start()
    try:
        return attempt.run_request(json.loads(request))
    except KeyboardInterrupt:  # before or after the attempt
        return attempt.PAUSED
    finally:
        sys.stderr.flush()


def _obey():
    while os.read(0, 1):
        _thread.interrupt_main(signal.SIGTERM)
    os._exit(attempt.PAUSED)


def work(address, slots):
    """Be a Dask worker with a thread for each slot until the scheduler, or the process that
    started this one, ends.
    """
    from distributed import Worker

    async def run():
        options = {"host": "127.0.0.1", "memory_limit": 0, "dashboard": False}
        async with Worker(address, nthreads=slots, **options) as worker:
            await worker.finished()

    # An interrupt is for the process of the scheduler alone, which then asks the children to save
    # their state.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(run())


def _end_with_parent():
    while os.read(0, 1):
        pass
    os._exit(attempt.FAILED)
