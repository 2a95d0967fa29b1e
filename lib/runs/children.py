"""Training processes that start at once: forked from a server that has imported torch and the
training, and does nothing else.

Importing costs several seconds of a core, more than a short run takes. A server runs one child at a
time, stays single-threaded and touches neither autograd nor a GPU, so that its forks are as good as
new processes. Both hang on one pipe, their standard input: when the process at its other end dies,
the child ends, and then the server.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading

from lib.runs import run


class Server:
    """A slot for training processes of so many threads: ``start`` one, ``wait`` for its end, start
    the next.
    """

    def __init__(self, threads=1):
        self.alive, self._errors = True, tempfile.TemporaryFile("a+b")
        command = [sys.executable, "-c", "from lib.runs import children; children.serve()"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": self._errors,
            "bufsize": 0,
        }
        # A session of its own: Ctrl-C in a terminal reaches the caller, who then asks the children
        # to save their state.
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def start(self, request):
        """Start a child for one request of `lib.runs.run.run_request`.

        Raises
        ------
        OSError
            The server is gone.
        """
        self._errors.truncate(0)
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        if not (said := self._process.stdout.readline()):
            self.alive = False
            raise ConnectionResetError(
                f"The server of the training processes ended. {self.errors()}"
            )
        self.pid = int(said)

    def wait(self, timeout=None):
        """Exit code of the child (negative for a signal), or None if it still runs after so many
        seconds.
        """
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return None
        if said := self._process.stdout.readline():
            return int(said)
        self.alive = False  # the server was killed, and its child goes with it
        self.send(signal.SIGKILL)
        return -signal.SIGKILL

    def send(self, number):
        """Send the child a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def errors(self, length=1500):
        """The end of what the child printed to standard error."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - length))
        return self._errors.read().decode(errors="replace").strip()


def serve():
    """For each request, a line on standard input: fork a child, print its pid and, when it has
    ended, its exit code.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    import lib.train  # noqa: F401  so that the children need not

    while request := _line():
        pid = os.fork()
        if pid == 0:
            _be_child(json.loads(request))
        with contextlib.suppress(BrokenPipeError):  # nobody asks any more
            print(pid, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)  # at once: taking torch down is slow


def _line():
    line = bytearray()
    while (byte := os.read(0, 1)) not in (
        b"\n",
        b"",
    ):  # nothing beyond the line: the rest is for the child
        line += byte
    return line


def _be_child(request):
    code = run.FAILED
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # the server alone answers, so that its end is noticed
        threading.Thread(target=_end_with_parent, daemon=True).start()
        code = run.run_request(request)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent():
    while os.read(0, 1):
        pass
    os._exit(run.PAUSED)
