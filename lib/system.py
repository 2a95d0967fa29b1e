"""The calls that differ between operating systems, each with what stands in where it is missing."""

import contextlib
import ctypes
import errno
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil

# macOS has a fork, but it is not safe once torch is loaded; Windows has none.
FORKS = sys.platform.startswith("linux")
# A signal from the terminal (Ctrl-C) stays with the process that started the others.
OWN_SESSION = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    if sys.platform == "win32"
    else {"start_new_session": True}
)
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)  # what a file system cannot sync
CLOCK = 1.0  # seconds by which two readings of the start of one process may differ
# glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes: freed memory that a process keeps, and
# the size from which a tensor has memory of its own (32 MiB is the most it takes).
HEAP = {-1: 512 << 20, -3: 32 << 20}
TRIES = 20  # Windows refuses to replace a file while somebody reads it


def cpus():
    """Cores that this process may use: affinity and the quota of a container count."""
    import joblib  # takes longer to import than `status` to answer

    return joblib.cpu_count()


def processor():
    """Name of the processor, or None where it is not to be found out."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform.startswith("linux"):
            lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
            named = (line.partition(":")[2].strip() for line in lines if "model name" in line)
            return next(named, None) or platform.machine() or None
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.check_output(command, text=True, timeout=5).strip() or None
    return platform.processor() or None


def sync_folder(folder):
    """Make renames and new names in a folder last through a power cut, where that can be asked."""
    if sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def replace(source, target):
    """`os.replace`, tried again for a second where a reader keeps it from happening."""
    for left in reversed(range(TRIES)):
        try:
            return os.replace(source, target)
        except PermissionError:
            if sys.platform != "win32" or not left:
                raise
            time.sleep(1 / TRIES)


def keep_memory():
    """Have glibc keep freed memory, which the next training step wants again: to take it from the
    system anew, page by page, is up to a sixth of a step. Elsewhere nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        for parameter, value in HEAP.items():
            ctypes.CDLL(None).mallopt(parameter, value)


def fork():
    """Process id of a forked child, 0 in the child; None where this process should not fork."""
    if not FORKS:
        return None
    try:
        return os.fork()
    except OSError:
        return None


def born(pid=None):
    """When a process started, in seconds since the epoch; None if it does not live.

    One that ended counts as dead even where nobody reaps it, as in many containers.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def lives(pid, since=None):
    """Whether the process that started at `since` works; a later one with its id does not count."""
    try:
        started = born(pid)
    except psutil.AccessDenied:  # another user's
        return True
    return started is not None and (since is None or abs(started - since) <= CLOCK)


def end(pid, since=None, at_once=False):
    """Ask a process to end (SIGTERM; on Windows it is ended), or end it `at_once`."""
    if lives(pid, since):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            process.kill() if at_once else process.terminate()
