"""Child processes that start at once: forked from a server that has imported torch and the training, and does nothing else.

Importing costs several seconds of a core, more than a short run takes. The server stays single-threaded and touches neither
autograd nor a GPU, so that its forks are as good as new processes. Pipes tie the three together: a child ends when the process
that asked for it dies, and so does the server, after it has ended and reaped its children.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from lib import run


class Children:
    """Starts children; one object for a process, its server starts with the first child.

    Parameters
    ----------
    threads : int
        Threads that a child computes with.
    """

    def __init__(self, threads=1):
        self.threads, self._server, self._control, self._lock = threads, None, None, threading.Lock()

    def spawn(self, request):
        """Start a child for one request of `lib.run.run_request`; returns a `Child`."""
        with self._lock:
            for _ in range(2):  # a server that was killed is replaced
                if self._server is None or self._server.poll() is not None:
                    self._start()
                with contextlib.suppress(ConnectionError):
                    return Child(self._control, {**request, "threads": self.threads})
        raise OSError("The server of the training processes ends as soon as it starts; try python -m lib run CONFIG.json to see why.")

    def _start(self):
        if self._control:
            self._control.close()
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-c", "from lib import children; children.serve()"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        # A session of its own: Ctrl-C in a terminal reaches the caller, who then asks the children to save their state.
        self._server = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, env=environment, start_new_session=True)
        theirs.close()


class Child:
    """A training process: ``pid``, ``returncode`` (None while it runs, negative for a signal), ``errors`` it printed."""

    def __init__(self, control, request):
        self._errors = tempfile.TemporaryFile()
        lifeline, self._lifeline = os.pipe()
        self._report, report = os.pipe()
        self.returncode, self._said = None, b""
        try:
            socket.send_fds(control, [b"c"], [lifeline, report, self._errors.fileno()])
            os.close(report)
            report = None
            os.write(self._lifeline, json.dumps(request).encode() + b"\n")
            while b"\n" not in self._said:
                if not (part := os.read(self._report, 64)):
                    raise ConnectionResetError("The server died.")
                self._said += part
        except OSError:
            self.close()
            raise
        finally:
            os.close(lifeline)
            if report is not None:
                os.close(report)
        self.pid = int(self._said.split(b"\n")[0])

    def poll(self):
        """Exit code, or None while the child runs."""
        while self.returncode is None and select.select([self._report], [], [], 0)[0]:
            part = os.read(self._report, 64)
            self._said += part
            if not part:  # the server is gone, and its children go with it
                self.kill()
                self.returncode = -signal.SIGKILL
            elif self._said.count(b"\n") == 2:
                self.returncode = int(self._said.split(b"\n")[1])
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end, at most so many seconds; returns the exit code, or None if the child still runs."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None and (end is None or time.monotonic() < end):
            select.select([self._report], [], [], 0.1)
        return self.returncode

    def terminate(self):
        self._send(signal.SIGTERM)

    def kill(self):
        self._send(signal.SIGKILL)

    def _send(self, number):
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def errors(self, length=1500):
        """The end of what the child printed to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - length))
        return self._errors.read().decode(errors="replace").strip()

    def close(self):
        """End the child, if it still runs, and close the pipes."""
        os.close(self._lifeline)
        os.close(self._report)
        self._errors.close()


def serve():
    """Fork a child for each message on standard input, a socket, and report its pid and exit code; end when the socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)

    import lib.train  # noqa: F401  so that the children need not

    reports = {}
    while True:
        ready = select.select([control, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
            while reports:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                with contextlib.suppress(BrokenPipeError):
                    os.write(reports[pid], b"%d\n" % os.waitstatus_to_exitcode(status))
                os.close(reports.pop(pid))
        if control in ready:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 3)
            if not message:
                for pid in reports:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                os._exit(0)
            lifeline, report, errors = descriptors
            pid = os.fork()
            if pid == 0:
                _be_child(lifeline, errors, [control.fileno(), wake, waker, report, *reports.values()])
            with contextlib.suppress(BrokenPipeError):
                os.write(report, b"%d\n" % pid)
            reports[pid] = report
            os.close(lifeline)
            os.close(errors)


def _be_child(lifeline, errors, others):
    code = run.FAILED
    try:
        signal.set_wakeup_fd(-1)
        for number, handler in ((signal.SIGCHLD, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(lifeline, 0)
        os.dup2(errors, 2)
        for descriptor in (lifeline, errors, *others):
            os.close(descriptor)
        code = run.child_main()
    finally:
        sys.stderr.flush()
        os._exit(code)
