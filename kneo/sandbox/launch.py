"""The launcher of a sandbox: a program that confines itself, and then serves calls of the functions of one module or becomes another program.

Run by its path, with the descriptor of a control socket and a scratch folder. It splits into a supervisor, which is outside the
sandbox, ends everything with the worker and removes the folder, and the process that is confined. The control socket carries JSON
lines and descriptors.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # an isolated interpreter has no folder of this file

from kneo.errors import KneoError
from kneo.sandbox import confine
from kneo.sandbox.functions import SandboxModule, error_of
from kneo.sandbox.scratch import remove_folder

_IS_LINUX = sys.platform == "linux"

_EXPLAINED = {
    "Landlock: Operation not supported": "Landlock is off (lsm= lacks landlock)",
    "Landlock: Function not implemented": "this kernel has no Landlock; Linux 6.2 has what is needed",
    "Landlock: Operation not permitted": "a filter of system calls around this process denies Landlock",
    "seccomp: Operation not permitted": "a filter of system calls around this process denies seccomp",
    "seccomp: Device or resource busy": "a filter of system calls around this process has a listener, and there can be one",
}


def main(control: socket.socket, scratch: str) -> int:
    """Start the confined process, wait for its end or the worker's, and end all that is left of it."""
    changed, changes = os.pipe()
    os.set_blocking(changes, False)
    signal.set_wakeup_fd(changes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    if _IS_LINUX:
        confine.adopt_orphans()
    confined = os.fork()
    if not confined:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(changed)
        os.close(changes)
        _begin(control, scratch)
    # A program that is asked to end gets its time from the worker.
    signal.signal(signal.SIGTERM, lambda *_: _signal_group(confined, signal.SIGTERM))
    for stream in (0, 1):
        os.close(stream)  # the program's own copies remain, so their ends mean its end
    status, memory = _wait(confined, control, changed)
    _signal_group(confined, signal.SIGKILL)
    end_children()
    remove_folder(scratch)
    if status:
        with suppress(OSError):
            os.write(2, f"exit status {status}, {memory >> (10 if _IS_LINUX else 20)} MiB of memory\n".encode())
    return status if status >= 0 else 128 - status


def _wait(confined: int, control: socket.socket, changed: int) -> tuple[int, int]:
    """Return the exit status and the largest memory, in the unit of this system, of a process once it ends; return earlier when the worker ends."""
    poll = select.poll()
    poll.register(control, 0)  # its end alone
    poll.register(changed, select.POLLIN)
    while True:
        found, status, used = os.wait4(confined, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), used.ru_maxrss
        for descriptor, _ in poll.poll():
            if descriptor != changed:
                return 0, 0
            os.read(changed, 4096)


def _signal_group(leader: int, number: int) -> None:
    for send in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            send(leader, number)


def end_children(but: int = 0) -> None:
    """Kill the processes below this one, which their orphans become too, until none is left but one."""
    while True:
        try:
            listing = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY)
        except OSError:  # no children are listed here
            while _reap(-1, os.WNOHANG):
                pass
            return
        found = [pid for pid in map(int, os.read(listing, 65_536).split()) if pid != but]
        os.close(listing)
        for pid in found:
            _signal_group(pid, signal.SIGKILL)
        ended = [_reap(pid) for pid in found]
        if not any(ended):
            return


def _reap(pid: int, options: int = 0) -> int:
    """Return the process that ended; 0 where there is none."""
    try:
        return os.waitpid(pid, options)[0]
    except ChildProcessError:
        return 0


# ---- the confined process ---------------------------------------------------------------------------------------


def _begin(control: socket.socket, scratch: str) -> None:
    os.setsid()
    os.umask(0o077)
    try:
        task = json.loads(_line(control))
        sandbox = ConfinedProcess(control, scratch, task)
        if "command" in task:
            sandbox.run_program(task["command"], task["folder"])
        else:
            sandbox.serve_calls()
        os._exit(0)
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:  # noqa: BLE001 - reported to the worker
        with suppress(OSError):
            _send(control, error_of(error))
    os._exit(1)


class ConfinedProcess:
    """The rights of this process, and of those that serve its calls.

    Args:
        control: The socket of the worker.
        scratch: The folder of the sandbox.
        task: The rights and the work, as ``kneo.sandbox.processes`` sends them.
    """

    def __init__(self, control: socket.socket, scratch: str, task: dict[str, object]) -> None:
        self._control, self._scratch, self._task = control, scratch, task
        self._is_kernel = task["level"] == "kernel"
        self._processes, self._runs = int(str(task["processes"])), "command" in task
        os.environ.clear()
        self._enter(self._scratch)
        environment = task["environment"]
        assert isinstance(environment, dict)
        os.environ.update(environment)

    def run_program(self, command: list[str], folder: str | None) -> None:
        """Become a program."""
        if folder is not None:
            os.chdir(folder)
        self._restrict()
        self._restrict_last(self._last_filter())
        _send(self._control, {"ready": True})
        self._control.set_inheritable(False)
        try:
            os.execvp(command[0], command)  # noqa: S606 - the worker has compared it with the allowed commands
        except OSError as error:
            sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
            sys.stderr.flush()
            os._exit(127)

    def serve_calls(self) -> None:
        """Import the module, and make each call in a process of its own until the worker closes the socket.

        The process of the next call is started while a call runs, and waits for the socket of its call with all its rights given
        up: neither this process nor a later one ever has the arguments of a call.
        """
        self._redirect()
        self._restrict()
        module, last = SandboxModule(self._task), self._last_filter()
        gc.freeze()  # a collection in a call would copy the pages of all that is imported
        _send(self._control, {"ready": True})
        folders = (f"{self._scratch}/{number}" for number in itertools.count(1))
        folder = next(folders)
        if not self._control.recv(1):  # the worker allows a first process
            return
        call, begun = self._start_call(module, folder, last)
        while os.read(begun, 1):
            os.close(begun)
            following = next(folders)
            waiting, begun = self._start_call(module, following, last) if self._serves_more else (0, -1)
            _, status, used = os.wait4(call, 0)
            if not self._is_kernel:
                _signal_group(call, signal.SIGKILL)
                end_children(but=waiting)
            remove_folder(folder)
            _send(self._control, {"status": os.waitstatus_to_exitcode(status), "cpu": used.ru_utime + used.ru_stime})
            if not waiting:
                return
            call, folder = waiting, following

    @property
    def _serves_more(self) -> bool:
        """Whether there are calls after the first: a template whose processes are counted serves one."""
        return self._processes == 1 or not self._is_kernel

    def _start_call(self, module: SandboxModule, folder: str, last: bytes) -> tuple[int, int]:
        """Start the process of a call; return its id and a pipe, which has a byte once the worker sends the call.

        This process does what it can do for that one, which has to copy each page of memory that it touches.
        """
        failed, files = None, -1
        try:
            if self._is_kernel:
                os.mkdir(folder)
                files = self._file_ruleset(folder)
            self._enter(folder)
        except BaseException as error:  # noqa: BLE001 - the answer of the call
            failed = error_of(error)
        begun, begins = os.pipe()
        call = os.fork()
        if not call:
            os.close(begun)
            self._serve(module, begins, folder, failed or self._prepare(files, last))
        os.close(begins)
        if files >= 0:
            os.close(files)
        return call, begun

    def _serve(self, module: SandboxModule, begins: int, folder: str, failed: dict[str, object] | None) -> None:
        """Wait for a call, make it, answer it, and end this process."""
        _, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        if not descriptors:
            os._exit(0)
        self._control.close()
        os.write(begins, b"c")
        os.close(begins)
        call = socket.socket(fileno=descriptors[0])
        request = _all(call)
        try:
            if not self._is_kernel:
                os.mkdir(folder)
            answer = failed or module.call(json.loads(request))
        except BaseException as error:  # noqa: BLE001 - reported to the worker
            answer = error_of(error)
        with suppress(OSError):
            call.sendall(json.dumps(answer).encode())
            call.close()  # the worker reads the end with the answer
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(0)

    def _prepare(self, files: int, last: bytes) -> dict[str, object] | None:
        """Give up the rights that a call does not need; return the answer of the call where that fails."""
        try:
            if _IS_LINUX:
                confine.end_with_parent()
            if self._serves_more:
                os.setsid()
            if files >= 0:
                confine.enter_ruleset(files)
            self._restrict_last(last)
        except BaseException as error:  # noqa: BLE001 - reported to the worker
            return error_of(error)
        return None

    def _enter(self, folder: str) -> None:
        if self._task["level"] == "none":
            return
        # Not by ``update``: whatever a call touches is a page of memory that is copied.
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
        if "tempfile" in sys.modules:
            vars(sys.modules["tempfile"])["tempdir"] = None
        if self._is_kernel:
            os.chdir(folder)

    def _redirect(self) -> None:
        """Give this process no input, and its errors as the only output."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)

    def _restrict(self) -> None:
        """Give up every right that the work does not need; all of them, or this process ends.

        Raises:
            KneoError: ``sandbox_unavailable`` or ``sandbox_path_denied``.
        """
        try:
            self._give_up()
        except OSError as error:
            reason = error.strerror or str(error)
            raise KneoError(_EXPLAINED.get(reason, reason), code="sandbox_unavailable") from None

    def _give_up(self) -> None:
        if _IS_LINUX:
            confine.end_with_parent()
        if self._task["level"] == "none":
            return
        if _IS_LINUX:
            confine.drop_privileges()
            if not self._runs:
                confine.adopt_orphans()
        if self._is_kernel:
            confine.enter_ruleset(self._file_ruleset(self._scratch))
            net = bool(self._task["net"])
            rules = [*confine.call_rules(net=net, scoped=confine.landlock_abi() >= confine.SCOPES_ABI)]
            forks = not self._runs and self._processes == 1
            if forks:
                rules += confine.fork_rules()
            listener = confine.restrict_calls(confine.call_filter(rules), listener=net or forks)
            if net or forks:
                socket.send_fds(self._control, [b'{"listener": true}\n'], [listener])
                os.close(listener)
        confine.limit(memory=int(str(self._task["memory"])))

    def _last_filter(self) -> bytes:
        several = self._processes > 1
        rules = confine.last_rules(starts_processes=several, runs_programs=several or self._runs)
        return confine.call_filter(rules) if self._is_kernel else b""

    def _restrict_last(self, last: bytes) -> None:
        if self._task["level"] != "none":
            confine.limit(cpu_seconds=int(str(self._task["cpu_seconds"])))
        if last:
            confine.restrict_calls(last)

    def _file_ruleset(self, folder: str) -> int:
        system = [*self._rules("system"), *self._rules("own"), (folder, confine.WRITE)]
        try:
            return confine.file_ruleset(system, self._rules("declared"))
        except confine.PathRefused as error:
            raise KneoError(f"reads {error.strerror}.", code="sandbox_path_denied") from None

    def _rules(self, part: str) -> list[confine.FileRule]:
        rules = self._task.get(part, [])
        assert isinstance(rules, list)
        return [(path, rights) for path, rights in rules]


def _send(control: socket.socket, message: dict[str, object]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def _line(control: socket.socket) -> bytes:
    """Return the first line of a socket, which the worker sends alone."""
    data = bytearray()
    while not data.endswith(b"\n"):
        received = control.recv(1 << 20)
        if not received:
            raise BrokenPipeError
        data += received
    return bytes(data)


def _all(call: socket.socket) -> bytes:
    return b"".join(iter(lambda: call.recv(1 << 20), b""))


def probe() -> dict[str, object]:
    """Confine this process in every way, and return what is there or what is missing."""
    try:
        confine.drop_privileges()
        abi = confine.landlock_abi()
        confine.restrict_files([])
        rules = confine.call_rules(net=True, scoped=abi >= confine.SCOPES_ABI)
        confine.restrict_calls(confine.call_filter(rules), listener=True)
    except OSError as error:
        reason = error.strerror or str(error)
        return {"missing": _EXPLAINED.get(reason, reason)}
    return {"abi": abi}


if __name__ == "__main__" and sys.argv[1:] == ["probe"]:
    sys.stdout.write(json.dumps(probe()))
elif __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))
