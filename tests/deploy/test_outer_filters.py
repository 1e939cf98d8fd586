"""The filters of system calls that systemd and container runtimes install leave sandboxes the level ``kernel``."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from deploy_files import DEPLOY, program
from under_filter import HEADER, system_calls

from kneo.sandbox.levels import host_level

TESTS = Path(__file__).parents[1]

CONTAINERS = """
    acct add_key bpf clock_adjtime clock_settime create_module delete_module finit_module get_kernel_syms init_module ioperm iopl
    io_uring_enter io_uring_register io_uring_setup kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind mount mount_setattr
    move_mount move_pages nfsservctl open_by_handle_at open_tree perf_event_open personality pidfd_getfd pivot_root
    process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot request_key set_mempolicy setns settimeofday
    swapoff swapon _sysctl sysfs umount2 unshare uselib userfaultfd ustat vhangup fsconfig fsmount fsopen fspick
"""
"""What the default profile of Docker and containerd denies to a container without capabilities, on a kernel newer than 4.8.

Source: profiles/seccomp/default.json of moby/moby, which is ``RuntimeDefault`` of Kubernetes as well.
"""

RESULTS = {
    "level": "kernel",
    "plain": "x",
    "declared": "x",
    "program": "x\n",
    "proxy": ["403", ""],
}


@cache
def groups() -> dict[str, list[str]]:
    """Return the groups of system calls that systemd knows, with their members."""
    listed = subprocess.run([program("systemd-analyze"), "syscall-filter"], capture_output=True, text=True, check=False)
    found: dict[str, list[str]] = {}
    for line in listed.stdout.splitlines():
        if line.startswith("@"):
            members = found.setdefault(line.strip(), [])
        elif line.startswith("    ") and "#" not in line:
            members.append(line.strip())
    return found


def expand(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    return set().union(*(expand(member) for member in groups()[name]))


def denied_by(unit: Path) -> set[str]:
    """Return the system calls of this machine that a unit denies."""
    allowed = expand("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.MULTILINE):
        allowed |= set().union(*(expand(name) for name in line.split()))
    return set(system_calls()) - allowed


def results_under(denied: set[str]) -> dict[str, object]:
    command = [
        sys.executable,
        "-c",
        "import sys; sys.path[:0] = sys.argv[1:3]; import under_filter; under_filter.main()",
    ]
    done = subprocess.run(
        [*command, str(TESTS), str(TESTS / "support")],
        input=" ".join(denied),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not HEADER.exists(), reason="needs the headers of Linux on x86_64"
)
@pytest.mark.parametrize("where", ["kneo-worker@.service", "kneo-service@.service", "containers"])
def test_sandboxes_work_at_level_kernel_under_the_filter(where: str) -> None:
    denied = set(CONTAINERS.split()) if where == "containers" else denied_by(DEPLOY / "systemd" / where)
    assert "mount" in denied
    found = results_under(denied)
    assert "Permission denied" in str(found.pop("denied"))
    assert found == RESULTS


@pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not HEADER.exists(), reason="needs the headers of Linux on x86_64"
)
def test_the_system_service_group_of_old_versions_alone_is_too_little(tmp_path: Path) -> None:
    unit = tmp_path / "unit.service"
    unit.write_text("SystemCallFilter=@system-service\n")
    denied = denied_by(unit) | {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    found = results_under(denied)
    assert found["level"] == "process"
    assert "needs a sandbox at level kernel" in str(found["plain"])
