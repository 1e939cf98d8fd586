"""Confinement of this process: files by Landlock, system calls by seccomp, resources by limits, and no capabilities.

Nothing here can be taken back, and a process that this one starts inherits it. Linux on x86_64 and aarch64; the standard library
alone, because the launcher of a sandbox imports it before anything else.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import resource
import stat
import struct
from collections.abc import Iterable, Iterator
from typing import TypeAlias

LOWEST_ABI = 3
"""The version of Landlock that covers truncation of files; Linux 6.2 has it."""

MAX_OPEN_FILES = 256

SCOPES_ABI = 6
"""The version of Landlock that confines signals."""

_LIBRARY = ctypes.CDLL(None, use_errno=True)


def _call(what: str, *arguments: object) -> int:
    result = int(_LIBRARY.syscall(*arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


# ---- privileges and limits --------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_CLEAR_ALL = 4
_CAPABILITY_VERSION = 0x20080522


def drop_privileges() -> None:
    """Give up all capabilities, and every way to get one back."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _LIBRARY.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)  # 0 is the calling thread
    if _LIBRARY.capset(header, (ctypes.c_uint32 * 6)()) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def adopt_orphans() -> None:
    """Become the parent of processes below this one whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have this process killed when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _LIBRARY.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def limit(*, memory: int | None = None, cpu_seconds: int | None = None) -> None:
    """Limit writable memory and the size of files, in bytes, open files, and processor time, which ends with SIGXCPU."""
    if memory is not None:
        for which, value in (("DATA", memory), ("FSIZE", memory), ("CORE", 0), ("NOFILE", MAX_OPEN_FILES)):
            _limit(getattr(resource, f"RLIMIT_{which}"), value, value)
    if cpu_seconds is not None:
        _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)


def _limit(which: int, *limits: int) -> None:
    highest = resource.getrlimit(which)[1]
    soft, hard = (each if highest == resource.RLIM_INFINITY else min(each, highest) for each in limits)
    resource.setrlimit(which, (soft, hard))


# ---- files ------------------------------------------------------------------------------------------------------

EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

LIST = _READ_DIR
READ = _READ_FILE | _READ_DIR
RUN = READ | EXECUTE
WRITE = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
USE = _READ_FILE | _WRITE_FILE
"""Rights at a path: list names, read, read and run, read and change, or use a device."""

_OF_FILES = EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _OPENAT2 = 444, 445, 446, 437
_ASK_VERSION = 1
_BENEATH = 1
_NO_SYMLINKS = 4

FileRule: TypeAlias = tuple[str, int]
"""A full path and the rights below it."""


def landlock_abi() -> int:
    """Return the version of Landlock of this machine.

    Raises:
        OSError: Landlock is off, or a filter denies it.
    """
    return _call("Landlock", _CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)


class PathRefused(OSError):
    """A declared path does not exist, or a part of it is a symbolic link."""


def open_path(path: str) -> int:
    """Open a path of which no part is a symbolic link, without reading it.

    Raises:
        PathRefused: it does not exist, or a part of it is a symbolic link.
    """
    how = ctypes.create_string_buffer(struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _NO_SYMLINKS), 24)
    try:
        return _call(path, _OPENAT2, -100, path.encode(), how, ctypes.c_size_t(24))
    except OSError as error:
        reason = (
            "goes through a symbolic link"
            if error.errno == errno.ELOOP
            else f"cannot be opened: {os.strerror(error.errno or 0)}"
        )
        raise PathRefused(error.errno, f"{path}, which {reason}") from None


def restrict_files(rules: Iterable[FileRule], declared: Iterable[FileRule] = (), abi: int | None = None) -> None:
    """Refuse all contents and changes of files, except for these rules; takes and raises what ``file_ruleset`` does."""
    enter_ruleset(file_ruleset(rules, declared, abi))


def enter_ruleset(ruleset: int) -> None:
    """Refuse what a ruleset does not allow, and close its descriptor."""
    _call("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def file_ruleset(rules: Iterable[FileRule], declared: Iterable[FileRule] = (), abi: int | None = None) -> int:
    """Return the descriptor of a ruleset for files; it confines signals to other processes too, where Landlock can.

    Args:
        rules: Paths of the system; missing ones are left out, symbolic links are followed.
        declared: Paths in which nothing may be a symbolic link.
        abi: The version of Landlock to use; default: this machine's.

    Raises:
        PathRefused: a declared path cannot be opened.
        OSError: Landlock is off or too old.
    """
    version = landlock_abi() if abi is None else abi
    if version < LOWEST_ABI:
        raise OSError(errno.ENOSYS, f"Landlock has version {version}; {LOWEST_ABI} is needed")
    handled = (1 << (16 if version >= 5 else 15)) - 1
    scoped = 3 if version >= SCOPES_ABI else 0
    attributes = ctypes.create_string_buffer(struct.pack("=QQQ", handled, 0, scoped), 24)
    size = 24 if version >= SCOPES_ABI else 8
    ruleset = _call("landlock_create_ruleset", _CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    for path, rights in rules:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        _allow(ruleset, opened, rights & handled)
    for path, rights in declared:
        _allow(ruleset, open_path(path), rights & handled)
    return ruleset


def _allow(ruleset: int, opened: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(opened).st_mode):
        rights &= _OF_FILES
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, opened), 12)
    _call("landlock_add_rule", _ADD_RULE, ruleset, _BENEATH, rule, 0)
    os.close(opened)


# ---- system calls -----------------------------------------------------------------------------------------------

_NUMBERS = """
socket 41 198, connect 42 203, sendto 44 206, sendmsg 46 211, sendmmsg 307 269, bind 49 200, listen 50 201,
socketpair 53 199, clone 56 220, clone3 435 435, fork 57 -, vfork 58 -, execve 59 221, execveat 322 281,
setsid 112 157, setpgid 109 154, kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138,
rt_tgsigqueueinfo 297 240, pidfd_send_signal 424 424, pidfd_getfd 438 438, chmod 90 -, fchmod 91 52, fchmodat 268 53,
fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, utime 132 -, utimes 235 -,
futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14,
lremovexattr 198 15, fremovexattr 199 16, setxattrat 463 463, removexattrat 466 466, file_setattr 469 469,
shmget 29 194, shmat 30 196, shmctl 31 195, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187,
semget 64 190, semop 65 193, semctl 66 191, semtimedop 220 192, mq_open 240 180, mq_unlink 241 181, add_key 248 217,
request_key 249 218, keyctl 250 219, ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271,
process_madvise 440 440, process_mrelease 448 448, kcmp 312 272, migrate_pages 256 238, move_pages 279 239,
bpf 321 280, userfaultfd 323 282, perf_event_open 298 241, fanotify_init 300 262, io_uring_setup 425 425,
io_uring_enter 426 426, io_uring_register 427 427, io_setup 206 0, name_to_handle_at 303 264,
open_by_handle_at 304 265, unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41,
chroot 161 51, mount_setattr 442 442, open_tree 428 428, move_mount 429 429, fsopen 430 430, fsmount 432 432,
fspick 433 433, open_tree_attr 467 467, personality 135 92, seccomp 317 277, prctl 157 167, ioctl 16 29, fcntl 72 25,
prlimit64 302 261, setpriority 141 140, ioprio_set 251 30, sched_setaffinity 203 122, sched_setscheduler 144 119,
sched_setparam 142 118, sched_setattr 314 274, landlock_create_ruleset 444 444, landlock_add_rule 445 445,
landlock_restrict_self 446 446, capset 126 91, memfd_secret 447 447, quotactl 179 60, quotactl_fd 443 443,
lookup_dcookie 212 18
"""
"""System calls with their numbers on x86_64 and aarch64."""

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The value by which seccomp names an architecture, and the column above."""

ALLOW, ERRNO, NOTIFY, KILL = 0x7FFF0000, 0x00050000, 0x7FC00000, 0x80000000
_SET_FILTER = 1
_NEW_LISTENER = 1 << 3
_X32_CALLS = 0x40000000

_INET, _INET6, _STREAM, _UNIX = 2, 10, 1, 1
_ANY = 0xFFFFFFFF
_THREAD = 0x10000
"""The flag of ``clone`` for a thread; without it, it makes a process."""

Test: TypeAlias = tuple[int, int, bool, int]
"""An argument, a mask, whether the masked argument has to be equal or unequal, and a value. The low 32 bits are compared."""

CallRule: TypeAlias = tuple[str, tuple[Test, ...], int]
"""A system call, the tests that all have to hold, and what then happens."""


def refuse(names: str, code: int = errno.EPERM, *tests: Test) -> Iterator[CallRule]:
    """Yield rules by which system calls fail with an error; with 0 they succeed and do nothing."""
    for name in names.split():
        yield name, tests, ERRNO | code


def call_rules(*, net: bool, scoped: bool) -> Iterator[CallRule]:
    """Yield the rules of a process for as long as it lives.

    Args:
        net: Whether it may open connections, which the listener of the filter decides.
        scoped: Whether Landlock confines its signals.
    """
    if net:
        for family in (_INET, _INET6):
            for protocol in (0, 6):
                is_tcp = ((0, _ANY, True, family), (1, 0xF, True, _STREAM), (2, _ANY, True, protocol))
                yield "socket", is_tcp, ALLOW
        yield "connect", (), NOTIFY
        fast_open = 0x20000000
        yield from refuse("sendto sendmmsg", errno.EPERM, (3, fast_open, False, 0))
        yield from refuse("sendmsg", errno.EPERM, (2, fast_open, False, 0))
    else:
        yield from refuse("connect")
    yield from refuse("socket", errno.EACCES)
    yield from refuse("bind listen")
    # A pair of datagram sockets could send to any other socket of the machine.
    yield from refuse("socketpair", errno.EPERM, (0, _ANY, False, _UNIX))
    yield from refuse("socketpair", errno.EPERM, (1, 0xF, False, _STREAM))
    yield from refuse("clone", errno.EPERM, (0, 0x7E020000, False, 0))  # namespaces
    yield from refuse("clone3", errno.ENOSYS)  # its flags are in memory; libraries then use clone
    # Landlock does not cover these; programs that copy files expect that they succeed.
    yield from refuse(
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat", 0
    )
    yield from refuse(
        "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr setxattrat removexattrat file_setattr",
        errno.ENOTSUP,
    )
    for kind in (0x5800, 0x6600, 0x7600, 0x9400):  # attributes, encryption, versions and snapshots of files
        yield from refuse("ioctl", errno.ENOTTY, (1, 0xFF00, True, kind))
    for command in (0x5412, 0x541C, 0x8901, 0x8902):  # typing into a terminal; signals by a descriptor
        yield from refuse("ioctl", errno.EPERM, (1, _ANY, True, command))
    for command in (8, 10, 15, 1024):  # signals by a descriptor; leases, which delay others
        yield from refuse("fcntl", errno.EPERM, (1, _ANY, True, command))
    yield from refuse("prctl", errno.EPERM, (0, _ANY, True, _PR_SET_PDEATHSIG), (1, _ANY, False, _SIGKILL))
    yield from refuse("prlimit64 setpriority ioprio_set sched_setaffinity", errno.EPERM, (0, _ANY, False, 0))
    yield from refuse("setpriority ioprio_set", errno.EPERM, (1, _ANY, False, 0))
    if not scoped:
        own = os.getpid()
        yield from refuse("kill tgkill rt_sigqueueinfo rt_tgsigqueueinfo", errno.EPERM, (0, _ANY, False, own))
        yield from refuse("tkill")
    yield from refuse(
        "shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semctl semtimedop mq_open mq_unlink "
        "add_key request_key keyctl ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp "
        "migrate_pages move_pages pidfd_send_signal pidfd_getfd bpf userfaultfd perf_event_open fanotify_init "
        "io_uring_setup io_uring_enter io_uring_register io_setup name_to_handle_at open_by_handle_at "
        "unshare setns mount umount2 pivot_root chroot mount_setattr open_tree open_tree_attr move_mount fsopen fsmount "
        "fspick personality sched_setscheduler sched_setparam sched_setattr memfd_secret quotactl quotactl_fd lookup_dcookie"
    )


def fork_rules() -> Iterator[CallRule]:
    """Yield the rules of a process that forks when the listener of the filter lets it, and runs no programs."""
    yield "fork", (), NOTIFY
    yield "clone", ((0, _THREAD, True, 0),), NOTIFY
    yield from refuse("vfork execve execveat")


def last_rules(*, starts_processes: bool, runs_programs: bool) -> Iterator[CallRule]:
    """Yield the rules of a process that has nothing more to set up."""
    if not starts_processes:
        yield from refuse("fork vfork")
        yield from refuse("clone", errno.EPERM, (0, _THREAD, True, 0))
    if not runs_programs:
        yield from refuse("execve execveat")
    yield from refuse("setsid setpgid seccomp")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def call_filter(rules: Iterable[CallRule]) -> bytes:
    """Return the program that decides system calls by the first rule that fits; calls of other architectures kill the process.

    Raises:
        OSError: there is none for this machine.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no filter of system calls is known for {machine}")
    return b"".join(struct.pack("=HBBI", *each) for each in _compile(rules, machine))


def restrict_calls(code: bytes, *, listener: bool = False) -> int:
    """Decide system calls by a program of ``call_filter``.

    Returns:
        The descriptor on which the rules with ``NOTIFY`` report; 0 without ``listener``.

    Raises:
        OSError: an outer filter denies it, or has a listener already.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    return _call("seccomp", number_of("seccomp"), _SET_FILTER, _NEW_LISTENER if listener else 0, ctypes.byref(program))


def number_of(name: str) -> int:
    """Return the number of a system call on this machine."""
    return _numbers(platform.machine())[name]


@functools.cache
def _numbers(machine: str) -> dict[str, int]:
    column = _MACHINES[machine][1]
    rows = (row.split() for row in _NUMBERS.split(","))
    return {name: int(numbers[column]) for name, *numbers in rows if numbers[column] != "-"}


_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


def _compile(rules: Iterable[CallRule], machine: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield instructions: code, jumps where a comparison holds and where not, value."""
    numbers = _numbers(machine)
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _EQUAL, 1, 0, _MACHINES[machine][0]
    yield _RETURN, 0, 0, KILL
    yield _LOAD, 0, 0, _NUMBER
    if machine == "x86_64":
        yield _AT_LEAST, 0, 1, _X32_CALLS
        yield _RETURN, 0, 0, KILL
    for name, tests, action in rules:
        if name not in numbers:
            continue
        length = 3 * len(tests) + 1
        reload = 1 if tests else 0
        yield _EQUAL, 0, length + reload, numbers[name]
        for index, (argument, mask, equal, value) in enumerate(tests):
            after = length - 3 * (index + 1)
            yield _LOAD, 0, 0, _ARGUMENTS + 8 * argument
            yield _AND, 0, 0, mask
            yield (_EQUAL, 0, after, value) if equal else (_EQUAL, after, 0, value)
        yield _RETURN, 0, 0, action
        if reload:
            yield _LOAD, 0, 0, _NUMBER
    yield _RETURN, 0, 0, ALLOW
