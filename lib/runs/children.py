"""Training processes that start at once: forked from a server that has imported torch and the
training, which takes several seconds, and does nothing else.

A server runs one child at a time, stays single-threaded and touches neither autograd nor a GPU, so
that its forks are as good as new processes. Where forking is not safe it trains one request itself,
and another one serves the next. Both hang on one pipe, their standard input: a line asks for a
training, an empty line asks it to save its state and end; when the process at the other end dies,
the child ends, and then the server.
"""

import _thread
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace

import psutil

from lib import paths, system
from lib.config import RunConfig
from lib.runs import attempt, checkpoints
from lib.runs.attempt import Ending, Request
from lib.runs.status import cancelled, unfinished
from lib.runs.store import Store

POLL = 0.2  # seconds between two looks at a child process
GRACE = 3  # seconds a child has to save its state before it is killed


class Server:
    """A slot for training processes: ``start`` one, ``wait`` for its end, start the next while it
    is `alive`.
    """

    def __init__(self):
        self.alive, self.pid = True, None
        self._errors = tempfile.TemporaryFile(buffering=0)  # a seek here moves the children's, too
        # Neither the working folder nor an installed copy decides which ``lib`` it imports.
        path = [str(paths.project_root()), *map(os.path.abspath, sys.path)]
        code = (
            f"import sys; sys.path[:] = {path!r}; from lib.runs import children; children.serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
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
        """Start a child for one `Request`.

        Raises
        ------
        OSError
            The server is gone.
        """
        self._errors.seek(0)
        self._errors.truncate()
        self.alive = False  # until it answers
        self._process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        self.pid = self._said.get()
        if self.pid is None:
            ended = "The server of the training processes ended."
            raise ConnectionResetError(f"{ended} {self.errors()}".strip())
        self.alive = True

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
            with contextlib.suppress(psutil.Error):  # else its run would still read RUNNING
                psutil.Process(self.pid).wait(GRACE)
            return -9
        return code

    def stop(self):
        """Ask the child to save its state and end."""
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"\n")

    def kill(self):
        """End the child at once."""
        if self.pid is not None:
            system.end(self.pid, at_once=True)

    def close(self):
        """End the server, which has no child."""
        self._process.stdin.close()
        self._process.wait()

    def errors(self):
        """The end of what the child printed to standard error."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 1500))
        return self._errors.read().decode(errors="replace").strip()


# On a worker


def work(request):
    """On a worker: `Ending` of the attempt that a `Request` asks for, in a child process.

    The child is asked to stop, and killed if it does not, when a run of its group is cancelled,
    when the sweep gave the task up and when the worker closes; it ends by itself when this process
    dies.
    """
    store, since = Store(request.results), request.since
    runs = {store.folder(RunConfig.from_dict(values).key()): values for values in request.configs}
    runs = {run: values for run, values in runs.items() if not cancelled(run, since)}
    if not runs:
        return Ending(attempt.DONE)
    if any((unfinished(run) or {}).get("state") == "RUNNING" for run in runs):
        time.sleep(1)
        return Ending(attempt.BUSY)
    with slot() as server:
        try:
            server.start(replace(request, configs=tuple(runs.values())))
        except OSError as error:  # the server was killed
            return Ending(attempt.FAILED, str(error))
        while (code := server.wait(POLL)) is None and _wanted():
            if any(cancelled(run, since) for run in runs):
                break
        if code is None:
            server.stop()
            if (code := server.wait(GRACE)) is None:
                server.kill()
                code = server.wait()
        message = server.errors()
        if code < 0:
            message = f"{message}\nended by signal {-code}".strip()
    saved = checkpoints.found(next(iter(runs)))
    return Ending(code, message or f"ended with code {code}", saved[0][0] if saved else -1)


def _wanted():
    """Whether this worker goes on and its scheduler still waits for this task."""
    from distributed import Status, get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    goes_on = worker.status in (Status.running, Status.paused)
    return goes_on and task is not None and task.state == "executing"


_idle = []  # servers of this process whose child has ended, to be used again


@contextlib.contextmanager
def slot():
    """A server for one child after the other; it is kept while it is alive, unless an error ends it
    with its child.
    """
    try:
        one = _idle.pop()
    except IndexError:
        one = Server()
    try:
        yield one
    except BaseException:
        one.kill()
        one.close()
        raise
    if one.alive:
        _idle.append(one)


def close():
    """End the servers that are idle."""
    while _idle:
        _idle.pop().close()


# In the processes that are started here


def serve():
    """For each request, a line on standard input: fork a child, print its pid and, when it has
    ended, its exit code; where forking is not safe be that child, once.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a training prints is no answer
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    # Here, so that the children need not: what reading data, training and torch's optimiser import,
    # and what is kept.
    import torch._dynamo  # noqa: F401
    from sklearn import datasets, model_selection  # noqa: F401

    from lib import compiled, train  # noqa: F401

    checkpoints.fingerprint()

    while line := _line():
        request = Request(**json.loads(line))
        if request.backend != "reference":
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
        return attempt.run_request(request)
    except KeyboardInterrupt:  # before or after the attempt
        return attempt.PAUSED
    finally:
        sys.stderr.flush()


def _obey():
    while os.read(0, 1):
        _thread.interrupt_main(signal.SIGTERM)
    os._exit(attempt.PAUSED)
