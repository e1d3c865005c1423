"""The system calls that isolated code may not make, as a program for Linux's seccomp.

Namespaces hide files, processes and the network; this closes what is left. Without new processes
and threads, the limit on one process's memory is the limit on all of it, and no fork bomb is
possible. Without sockets, shared memory and keys, there is nothing that outlives or leaves the
namespaces (AF_VSOCK reaches a virtual machine's host from any of them). The rest is for debugging,
mounting and loading programs into the kernel, whose faults are where escapes come from.
"""

import errno
import platform
import struct

# name -> number on x86-64, on 64-bit ARM. ENOSYS has the C library fall back to an older call.
_REFUSED = {
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
# platform.machine() -> column above, the kernel's number for the architecture (AUDIT_ARCH_*).
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
MACHINES = tuple(_MACHINES)

# struct sock_filter and the codes that are used of it (linux/filter.h, linux/seccomp.h).
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _MACHINE_AT = 0, 4  # in struct seccomp_data
_X32 = 0x40000000  # the same calls by other numbers, on x86-64


def refused(machine: str) -> dict[str, int]:
    """Name -> number of the refused calls on a machine, one of ``MACHINES``."""
    column, _ = _MACHINES[machine]
    numbers = {name: row[column] for name, row in _REFUSED.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def program(machine: str | None = None) -> bytes:
    """The filter, as bubblewrap's --seccomp reads it; by default for this machine."""
    machine = machine or platform.machine()
    numbers = refused(machine)
    made = [
        _INSTRUCTION.pack(_LOAD, 0, 0, _MACHINE_AT),
        _INSTRUCTION.pack(_JUMP_EQUAL, 1, 0, _MACHINES[machine][1]),
        _INSTRUCTION.pack(_RETURN, 0, 0, _KILL),
        _INSTRUCTION.pack(_LOAD, 0, 0, _NUMBER_AT),
        _INSTRUCTION.pack(_JUMP_AT_LEAST, 0, 1, _X32),
        _INSTRUCTION.pack(_RETURN, 0, 0, _KILL),
    ]
    for name, number in numbers.items():
        error = errno.ENOSYS if name == "clone3" else errno.EPERM
        made.append(_INSTRUCTION.pack(_JUMP_EQUAL, 0, 1, number))
        made.append(_INSTRUCTION.pack(_RETURN, 0, 0, _REFUSE | error))
    return b"".join([*made, _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW)])
