"""A filter of system calls, made by libseccomp, that a child takes on before a submission runs.

Namespaces, limits and a user without rights already bar what these calls would do. The filter keeps
a submission from reaching the kernel's rarely used corners at all, where a mistake in the kernel
would be of use to it. The child installs the compiled program itself, when its rights are gone.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import functools
import tempfile

ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO (seccomp.h)
NOT_EQUAL, MASKED_EQUAL = 1, 7  # SCMP_CMP_NE, SCMP_CMP_MASKED_EQ
UNKNOWN = -1  # __NR_SCMP_ERROR
UNIX = 1  # AF_UNIX

# What Docker's default profile refuses to a container without rights, and what no notebook needs.
REFUSED = (
    "acct", "add_key", "bpf", "chroot", "delete_module", "fanotify_init", "finit_module",
    "fsconfig", "fsmount", "fsopen", "fspick", "get_mempolicy", "init_module", "io_uring_enter",
    "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load",
    "kexec_load", "keyctl", "lookup_dcookie", "mbind", "migrate_pages", "mount", "mount_setattr",
    "move_mount", "move_pages", "name_to_handle_at", "open_by_handle_at", "open_tree",
    "perf_event_open", "personality", "pivot_root", "process_madvise", "process_vm_readv",
    "process_vm_writev", "ptrace", "quotactl", "reboot", "request_key", "set_mempolicy", "setns",
    "settimeofday", "swapoff", "swapon", "syslog", "umount2", "unshare", "userfaultfd", "vhangup",
)  # fmt: skip
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (sched.h)
NEW_NAMESPACES = tuple(1 << bit for bit in (17, 25, 26, 27, 28, 29, 30))


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


@functools.cache
def program() -> str:
    """The filter in base64, for this machine's kind of processor; empty without libseccomp."""
    library = _library()
    if library is None:
        return ""
    context = library.seccomp_init(ctypes.c_uint32(ALLOW))
    try:
        for name in REFUSED:
            _refuse(library, context, name)
        _refuse(library, context, "clone3", code=errno.ENOSYS)  # its flags cannot be seen here
        for flag in NEW_NAMESPACES:
            _refuse(library, context, "clone", _Comparison(0, MASKED_EQUAL, flag, flag))
        _refuse(library, context, "socket", _Comparison(0, NOT_EQUAL, UNIX, 0))
        with tempfile.TemporaryFile() as file:
            if library.seccomp_export_bpf(context, file.fileno()):
                return ""
            file.seek(0)
            return base64.b64encode(file.read()).decode("ascii")
    finally:
        library.seccomp_release(context)


def _library() -> ctypes.CDLL | None:
    """libseccomp, where there is one: systemd and most container engines bring it along."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_rule_add_array.argtypes = (
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(_Comparison),
        )
        library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
        library.seccomp_release.argtypes = (ctypes.c_void_p,)
    except (OSError, AttributeError):
        return None
    return library


def _refuse(
    library: ctypes.CDLL,
    context: int,
    name: str,
    *conditions: _Comparison,
    code: int = errno.EPERM,
) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == UNKNOWN:  # newer than the library
        return
    array = (_Comparison * max(1, len(conditions)))(*conditions)
    library.seccomp_rule_add_array(context, REFUSE | code, number, len(conditions), array)
