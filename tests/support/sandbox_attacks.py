"""What a hostile function tries in a sandbox. The standard library alone: it is executed inside.

``run`` tries everything and returns the names of what succeeded. ``needs`` are the things that have to work. ``report`` is both in one text.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

_library = ctypes.CDLL(None, use_errno=True)
_library.mmap.restype = ctypes.c_void_p
_library.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip


class Blocked(Exception):
    """The attack did not reach its aim."""


def call(number, *arguments):
    result = _library.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def run(target):
    """Try everything; return the names of the attacks that succeeded."""
    reached = []
    for name, attack in attacks(target).items():
        try:
            attack()
        except BaseException:  # noqa: BLE001 - whatever stops it
            continue
        reached.append(name)
    return reached


def report(target):
    """Return what was reached, and what does not work and has to."""
    return f"REACHED:{','.join(run(target))};FAILED:{','.join(each.partition(':')[0] for each in needs())};"


def attacks(target):
    """Return attacks by name. ``target`` has ``worker``, ``secret``, ``dir``, ``port``, ``unix`` and ``shm``.

    With ``program`` the attacker is a program of its own, which may become another one and change its own copy of its file.
    """
    of_program = {"replace_itself", "run_memory", "write_own_module"} if target.get("program") else set()
    return {name: attack for name, attack in _attacks(target).items() if name not in of_program}


def _attacks(target):
    worker, secret, folder, port = target["worker"], target["secret"], target["dir"], target["port"]
    found = {}

    def attack(function):
        found[function.__name__] = function
        return function

    attack(_named("descriptors", lambda: _need([each for each in range(3, 256) if _is_open(each) and _reads(each)])))

    # ---- files ----
    attack(_named("read_worker_environ", lambda: Path(f"/proc/{worker}/environ").read_bytes()))
    attack(_named("read_worker_memory", lambda: open(f"/proc/{worker}/mem", "rb")))
    attack(_named("list_worker_descriptors", lambda: os.listdir(f"/proc/{worker}/fd")))
    attack(_named("read_parent_environ", lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()))
    attack(_named("write_parent_memory", lambda: open(f"/proc/{os.getppid()}/mem", "r+b")))
    attack(_named("read_own_environ", lambda: Path("/proc/self/environ").read_bytes()))
    attack(_named("read_secret", lambda: Path(secret).read_bytes()))
    attack(_named("append_to_secret", lambda: open(secret, "a").write("x")))
    attack(_named("truncate_secret", lambda: os.truncate(secret, 0)))
    attack(_named("open_and_truncate_secret", lambda: os.open(secret, os.O_WRONLY | os.O_TRUNC)))
    attack(_named("remove_secret", lambda: os.unlink(secret)))
    attack(_named("rename_secret", lambda: os.rename(secret, f"{secret}.old")))
    attack(_named("replace_secret", lambda: (Path("mine").write_text("x"), os.replace("mine", secret))))
    attack(_named("hardlink_secret", lambda: os.link(secret, "hard")))
    attack(_named("read_secret_by_symlink", lambda: (os.symlink(secret, "soft"), Path("soft").read_bytes())))
    attack(
        _named("read_secret_by_descriptor", lambda: Path(f"/proc/self/fd/{os.open(secret, os.O_PATH)}").read_bytes())
    )
    attack(_named("create_file_next_to_secret", lambda: open(f"{folder}/new", "w")))
    attack(_named("make_folder_next_to_secret", lambda: os.mkdir(f"{folder}/new.d")))
    attack(_named("make_link_next_to_secret", lambda: os.symlink("/", f"{folder}/new.l")))
    attack(_named("make_pipe_in_scratch", lambda: os.mkfifo("pipe")))
    attack(_named("list_root", lambda: os.listdir("/")))
    attack(_named("list_secrets", lambda: os.listdir(folder)))
    attack(_named("read_passwd", lambda: Path("/etc/passwd").read_bytes()))
    attack(_named("read_devices", lambda: open("/dev/mem", "rb")))
    attack(_named("open_terminal", lambda: open("/dev/tty", "r+b", buffering=0)))
    attack(_named("write_home", lambda: open(target["home"], "w")))
    attack(_named("write_shared_memory", lambda: open("/dev/shm/kneo-evil", "w")))
    attack(_named("write_tmp", lambda: open("/tmp/kneo-evil", "w")))
    attack(_named("write_standard_library", lambda: open(os.path.join(os.path.dirname(os.__file__), "evil.py"), "w")))
    attack(
        _named("write_own_module", lambda: open(__file__, "a").write("x") if os.path.exists(__file__) else _blocked())
    )
    attack(_named("write_launcher", lambda: open(sys.modules["kneo.sandbox.confine"].__file__, "a")))
    attack(_named("list_earlier_scratch", lambda: os.listdir(target.get("above", ".."))))

    @attack
    def change_mode_of_secret():
        before = os.stat(secret).st_mode
        os.chmod(secret, 0o666)
        _need(os.stat(secret).st_mode != before)

    @attack
    def change_time_of_secret():
        before = os.stat(secret).st_mtime_ns
        os.utime(secret, (1, 1))
        _need(os.stat(secret).st_mtime_ns != before)

    @attack
    def change_owner_of_secret():
        before = os.stat(secret).st_uid
        os.chown(secret, 12345, 12345)
        _need(os.stat(secret).st_uid != before)

    attack(_named("change_attribute_of_secret", lambda: os.setxattr(secret, "user.x", b"x")))

    @attack
    def change_flags_of_file():
        with open(os.__file__, "rb") as file:  # a readable file: flags need no right to write
            fcntl.ioctl(file, 0x40086602, struct.pack("i", 0x80))

    @attack
    def keep_a_mode_in_scratch():
        Path("own").write_text("x")
        os.chmod("own", 0o4777)
        _need(os.stat("own").st_mode & 0o4000)

    # ---- processes ----
    attack(_named("trace_worker", lambda: call(101, 16, worker, 0, 0)))
    attack(_named("read_worker_by_call", lambda: call(310, worker, 0, 0, 0, 0, 0)))
    attack(_named("write_parent_by_call", lambda: call(311, os.getppid(), 0, 0, 0, 0, 0)))
    attack(_named("signal_worker", lambda: os.kill(worker, 0)))
    attack(_named("signal_parent", lambda: os.kill(os.getppid(), 0)))
    attack(_named("signal_all", lambda: (os.kill(-1, 15), _blocked())))
    attack(_named("signal_thread_of_worker", lambda: call(200, worker, 0)))
    attack(_named("queue_signal_to_worker", lambda: call(129, worker, 0, ctypes.create_string_buffer(128))))
    attack(
        _named("signal_worker_by_descriptor", lambda: __import__("signal").pidfd_send_signal(os.pidfd_open(worker), 0))
    )
    attack(_named("take_descriptor_of_worker", lambda: call(438, os.pidfd_open(worker), 1, 0)))
    attack(
        _named("signal_parent_by_ownership", lambda: fcntl.fcntl(socket.socketpair()[0], fcntl.F_SETOWN, os.getppid()))
    )
    attack(_named("choose_signal_of_ownership", lambda: fcntl.fcntl(socket.socketpair()[0], 10, 9)))
    attack(
        _named("lease_a_file", lambda: fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK))
    )
    attack(_named("limit_worker", lambda: resource.prlimit(worker, 7, (1, 1))))
    attack(_named("limit_parent", lambda: resource.prlimit(os.getppid(), 7, (1, 1))))
    attack(_named("raise_own_limit", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))))
    attack(_named("raise_own_memory", lambda: resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))))
    attack(_named("slow_down_others", lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19)))
    attack(_named("slow_down_worker", lambda: os.setpriority(os.PRIO_PROCESS, worker, 19)))
    attack(_named("move_worker", lambda: os.sched_setaffinity(worker, {0})))
    attack(_named("fork", _fork))
    attack(_named("fork_by_clone", lambda: _exit_child(call(56, 17, 0, 0, 0, 0))))
    attack(_named("fork_by_clone3", lambda: _exit_child(call(435, struct.pack("=11Q", *[0] * 4, 17, *[0] * 6), 88))))
    attack(_named("run_program", lambda: subprocess.run(["/bin/true"], check=True)))
    attack(_named("replace_itself", lambda: os.execv("/bin/true", ["true"])))
    attack(_named("run_memory", lambda: os.execve(os.memfd_create("x"), ["x"], {})))
    attack(_named("leave_session", os.setsid))
    attack(_named("leave_group", lambda: os.setpgid(0, 0)))
    attack(_named("outlive_parent", lambda: _check(_library.prctl(1, 0, 0, 0, 0))))
    attack(_named("own_filter", lambda: call(317, 1, 8, 0)))
    attack(
        _named(
            "become_root", lambda: (os.setuid(0), _need(False) if os.getuid() else Path(target["home"]).write_text("x"))
        )
    )
    attack(_named("gain_capability", lambda: _check(_library.prctl(47, 2, 21, 0, 0))))
    attack(_named("old_system_call", lambda: _blocked() if target["safe"] else _int80()))

    # ---- kernel ----
    attack(_named("io_uring", lambda: call(425, 1, ctypes.create_string_buffer(128))))
    attack(_named("namespace", lambda: call(272, 0x10000000)))
    attack(_named("namespace_by_clone", lambda: _exit_child(call(56, 0x10000000 | 17, 0, 0, 0, 0))))
    attack(_named("mount", lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0)))
    attack(_named("open_tree", lambda: call(428, -100, b"/", 1)))
    attack(_named("new_root", lambda: os.chroot(".")))
    attack(_named("shared_memory", lambda: call(29, 1234, 100, 0o1666)))
    attack(_named("attach_shared_memory", lambda: call(30, target["shm"], 0, 0o10000)))
    attack(_named("message_queue", lambda: call(68, 1234, 0o1666)))
    attack(_named("posix_queue", lambda: call(240, b"kneo", 0o102, 0o666, 0)))
    attack(_named("keyring", lambda: call(250, 0, -3, 0)))
    attack(_named("program_in_kernel", lambda: call(321, 0, ctypes.create_string_buffer(128), 128)))
    attack(_named("user_faults", lambda: call(323, 1)))
    attack(_named("measure_kernel", lambda: call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)))
    attack(_named("handle_of_file", lambda: call(304, -100, ctypes.create_string_buffer(16), 0)))
    attack(_named("personality", lambda: call(135, 0x0400000)))
    attack(_named("type_into_terminal", lambda: fcntl.ioctl(2, 0x5412, b"x")))

    # ---- network ----
    attack(_named("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
    attack(_named("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)))
    attack(_named("sctp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)))
    attack(_named("sctp_packets", lambda: socket.socket(socket.AF_INET, 5, 132)))
    attack(_named("mptcp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)))
    attack(_named("unix", lambda: socket.socket(socket.AF_UNIX)))
    attack(_named("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)))
    attack(_named("vsock", lambda: socket.socket(40, socket.SOCK_STREAM)))
    attack(_named("packet", lambda: socket.socket(17, socket.SOCK_RAW)))
    attack(_named("kernel_crypto", lambda: socket.socket(38, socket.SOCK_SEQPACKET)))
    attack(_named("dns", lambda: socket.getaddrinfo("example.org", 443)))
    attack(_named("loopback", lambda: _data(socket.create_connection(("127.0.0.1", port), 2))))
    attack(_named("loopback_v6", lambda: _data(socket.create_connection(("::1", port), 2))))
    attack(_named("outside", lambda: _data(socket.create_connection(("93.184.216.34", 80), 2))))
    attack(_named("metadata_service", lambda: _data(socket.create_connection(("169.254.169.254", 80), 2))))
    attack(_named("undeclared_host", lambda: _tunnel(f"evil.example:{port}")))
    attack(_named("address_by_proxy", lambda: _tunnel(f"127.0.0.1:{port}")))
    attack(_named("other_port_by_proxy", lambda: _tunnel("api.example:22")))
    attack(_named("get_by_proxy", lambda: _plain(f"GET http://127.0.0.1:{port}/ HTTP/1.0\r\n\r\n")))
    attack(
        _named(
            "unix_pair_to_another", lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"x", target["unix"])
        )
    )
    attack(_named("unix_pair_connects", lambda: _data(_connected(socket.socketpair()[0], target["unix"]))))
    attack(_named("listen", lambda: socket.socket().listen()))
    attack(_named("bind", lambda: socket.socket().bind(("127.0.0.1", 0))))

    @attack
    def fast_open():
        one = socket.socket()
        one.settimeout(2)
        one.sendto(b"GET / HTTP/1.0\r\n\r\n", 0x20000000, ("127.0.0.1", port))
        _need(one.recv(20))

    @attack
    def fast_open_message():
        one = socket.socket()
        one.settimeout(2)
        one.sendmsg([b"GET / HTTP/1.0\r\n\r\n"], [], 0x20000000, ("127.0.0.1", port))
        _need(one.recv(20))

    @attack
    def fast_open_option():
        one = socket.socket()
        one.setsockopt(6, 30, 1)
        one.connect(("127.0.0.1", port))
        _data(one)

    @attack
    def send_without_connection():
        socket.socket().sendto(b"x", ("127.0.0.1", port))

    attack(
        _named("environment", lambda: _need([name for name in os.environ if "SECRET" in name or "KNEO_SERV" in name]))
    )
    return found


def needs():
    """Return the names of what does not work and has to."""
    failed = []
    for name, work in {
        "thread": _thread,
        "scratch": lambda: Path("kept").write_text("x"),
        "temporary": lambda: tempfile.NamedTemporaryFile().write(b"x"),
        "copy": lambda: __import__("shutil").copy("kept", tempfile.mkdtemp()),
        "asyncio": lambda: __import__("asyncio").run(__import__("asyncio").sleep(0)),
        "import": lambda: __import__("sqlite3").connect("db").execute("create table t (a)"),
        "random": lambda: os.urandom(3),
        "zone": lambda: __import__("zoneinfo").ZoneInfo("Europe/Berlin") if Path("/usr/share/zoneinfo").exists() else 0,
    }.items():
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            failed.append(f"{name}: {error!r}")
    return failed


def _named(name, work):
    def attack():
        return work()

    attack.__name__ = name
    return attack


def _need(truth):
    if not truth:
        raise Blocked


def _blocked():
    raise Blocked


def _check(result):
    _need(result >= 0)


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _reads(descriptor):
    """Whether a descriptor is more than the call's own socket and files that this interpreter opened."""
    import stat

    kind = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(kind):
        one = socket.socket(fileno=os.dup(descriptor))
        try:
            return one.family != socket.AF_UNIX
        finally:
            one.close()
    return not stat.S_ISREG(kind) and not stat.S_ISDIR(kind) and not stat.S_ISFIFO(kind)


def _fork():
    _exit_child(os.fork())


def _exit_child(pid):
    if not pid:
        os._exit(0)


def _data(connection):
    connection.settimeout(2)
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    received = connection.recv(50)
    _need(received and b"403" not in received)
    return received


def _connected(one, address):
    one.connect(address)
    return one


def _plain(text):
    one = socket.create_connection(("127.0.0.1", 3128), 2)
    one.sendall(text.encode())
    _need(b"200" in one.recv(100))
    return one


def _tunnel(target):
    return _plain(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")


def _thread():
    one = threading.Thread(target=lambda: None)
    one.start()
    one.join()


def _int80():
    """Call getpid as a program of 32 bits would: the filter kills the process."""
    code = bytes.fromhex("b814000000cd80c3")
    place = _library.mmap(None, 4096, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memmove(place, code, len(code))
    _need(ctypes.CFUNCTYPE(ctypes.c_int)(place)() > 0)
