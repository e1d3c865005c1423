"""The filter of system calls: its numbers, and what it decides about each call."""

import errno
import pathlib
import re
import struct

import pytest

from jax_power_smc.grading import syscall_filter

HEADERS = {
    "x86_64": pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": pathlib.Path("/usr/include/asm-generic/unistd.h"),
}
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000
GETPID = {"x86_64": 39, "aarch64": 172}


def decide(program, machine, number):
    """Interprets the filter as the kernel does."""
    data, at, value = struct.pack("=II", number, machine), 0, 0
    code = list(struct.iter_unpack("=HBBI", program))
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x06:
            return operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand}[operation]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", syscall_filter.MACHINES)
def test_what_it_decides(machine):
    program = syscall_filter.program(machine)
    refused = syscall_filter.refused(machine)
    for name, number in refused.items():
        expected = errno.ENOSYS if name == "clone3" else errno.EPERM
        assert decide(program, AUDIT[machine], number) == REFUSE | expected, name
    allowed = set(range(500)) - set(refused.values())
    assert {decide(program, AUDIT[machine], number) for number in allowed} == {ALLOW}
    # The same calls by way of another architecture, such as 32-bit x86, or of x32.
    assert decide(program, 0x40000003, GETPID[machine]) == KILL
    assert decide(program, AUDIT[machine], 0x40000000 | GETPID[machine]) == KILL


@pytest.mark.parametrize("machine", syscall_filter.MACHINES)
def test_numbers_are_those_of_the_kernel(machine):
    if not HEADERS[machine].is_file():
        pytest.skip(f"{HEADERS[machine]} is absent (Debian: linux-libc-dev)")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    numbers = {name: int(number) for name, number in defined}
    refused = syscall_filter.refused(machine)
    assert {name: numbers.get(name) for name in refused} == refused
