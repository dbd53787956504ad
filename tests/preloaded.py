"""Python programs in forks of one process that has imported what most of them need.

A fork takes milliseconds where a new interpreter imports for seconds. It is a process like any other (it can
be killed, it has a working directory, variables and streams of its own), but for what was imported before: a
test of imports, of the interpreter's own variables or of memory starts an interpreter.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Imported once, and no thread is started by it: a fork has none but its own.
START = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
import torch._dynamo, models.cli.evaluate, models.cli.train, models.training.autoencoder, preloaded
preloaded.become(*preloaded.serve(int(sys.argv[1])))
"""

_server: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def run(
    arguments: list[str], *, cwd: Path | str = ROOT, timeout: float = 800, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run([sys.executable, *arguments])`` gives, with these variables beside those of now.

    Arguments are ``-c CODE ...``, ``-m MODULE ...`` or ``FILE ...``.
    """
    connection = _connect()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        request = {"arguments": arguments, "cwd": str(cwd), "environment": os.environ | environment}
        connection.settimeout(timeout)
        try:
            socket.send_fds(connection, [b"fds"], [out.fileno(), err.fileno()])
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = connection.recv(64)
        except TimeoutError:
            _stop()
            raise subprocess.TimeoutExpired(arguments, timeout) from None
        except BaseException:  # a test that is ended: the next one would get the answer of its program
            _stop()
            raise
        if not answer:
            _stop()
            raise RuntimeError("the process that programs are forked from has ended; see its output above")
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, int(answer), out.read(), err.read())


def _connect() -> socket.socket:
    global _server
    if _server is None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", START, str(theirs.fileno())]
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        _server = process, ours
        atexit.register(_stop)
    return _server[1]


def _stop() -> None:
    """Ends the server and whatever it runs."""
    global _server
    if _server is not None:
        process, connection = _server
        _server = None
        connection.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def serve(number: int) -> tuple[list[str], dict[str, str]]:
    """Forks for each request; comes back in a fork alone, with what it is to run."""
    gc.collect()
    gc.freeze()  # a fork that looked through all of it for garbage would copy all of it
    connection = socket.socket(fileno=number)
    while True:
        _, streams, _, _ = socket.recv_fds(connection, 3, 2)
        if not streams:
            os._exit(0)  # the tests are over
        text = b""
        while not text.endswith(b"\n"):
            text += connection.recv(1 << 16)
        request = json.loads(text)
        child = os.fork()
        if not child:
            connection.close()
            for stream, place in zip(streams, (1, 2), strict=True):
                os.dup2(stream, place)
                os.close(stream)
            os.chdir(request["cwd"])
            return request["arguments"], request["environment"]
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def become(arguments: list[str], environment: dict[str, str]) -> None:
    """Runs the program as an interpreter would that starts now, and ends the process.

    What an interpreter does at its end is done, but for freeing memory: of all that was imported, that took
    two seconds and more.
    """
    status: object = None
    try:
        _execute(arguments, environment)
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        raise  # the interpreter ends itself by the signal
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def _execute(arguments: list[str], environment: dict[str, str]) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    kind, *rest = arguments
    if kind == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), module.__dict__)
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")
