"""Programs that try to leave the sandbox; each returns True, or what it should not know.

A program is the body of a function. It may use

    canary   a file outside, with the text "secret"; its folder is also the test's own
    pid      a process outside
    port     where that process listens, and ``abstract``, a socket of Unix without a file
    key      of a System V shared memory segment
    other    a variable of the environment of that process has the text "secret", too
"""

# These work in an ordinary process, as a test proves.
WORKING = {
    "second path of replace": """
        open("mine", "w").write("changed")
        os.replace("mine", canary)
        return True
    """,
    "hard link": """
        os.link(canary, "mine")
        open("mine", "w").write("changed")
        return True
    """,
    "symbolic link": """
        os.symlink(canary, "mine")
        open("mine", "w").write("changed")
        return True
    """,
    "dir_fd": """
        folder = os.open(os.path.dirname(canary), os.O_RDONLY)
        os.unlink("canary", dir_fd=folder)
        return True
    """,
    "sqlite3": """
        import sqlite3
        database = sqlite3.connect(canary + ".db")
        database.execute("create table t (x)")
        database.commit()
        return True
    """,
    "ctypes": """
        return ctypes.CDLL(None).unlink(canary.encode()) == 0
    """,
    "_posixsubprocess": """
        from multiprocessing import util
        script = f"echo changed > '{canary}'"
        os.waitpid(util.spawnv_passfds(b"/bin/sh", [b"sh", b"-c", script.encode()], []), 0)
        return open(canary).read() == "changed\\n"
    """,
    "double fork": """
        if (child := os.fork()) == 0:
            if os.fork() == 0:
                os.setsid()
                open(canary, "w").write("changed")
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(1)
        return True
    """,
    "reading a file": "return open(canary).read()",
    "reading by way of /proc": "return open(f'/proc/{pid}/root{canary}').read()",
    "environment of another process": "return open(f'/proc/{pid}/environ').read()",
    "kill": """
        os.kill(pid, 9)
        return True
    """,
    "limits of another process": """
        import resource
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (9, 9))
        return True
    """,
    "network": """
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True
    """,
    "abstract socket": """
        socket.socket(socket.AF_UNIX).connect("\\0" + abstract)
        return True
    """,
    "shared memory": """
        return ctypes.CDLL(None).shmget(key, 4096, 0o1666) >= 0
    """,
}

# These need rights or kernels that not every machine has, or would do damage.
OTHERS = {
    "fork": """
        if os.fork() == 0:
            os._exit(0)
        return True
    """,
    "threads": """
        import threading
        threading.Thread(target=int).start()
        return True
    """,
    "user namespace": "return ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "return ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "ptrace": "return ctypes.CDLL(None).ptrace(0x4206, pid, 0, 0) == 0",
    "parent's memory": "return ctypes.CDLL(None).ptrace(0x4206, os.getppid(), 0, 0) == 0",
    "host of a virtual machine": "return bool(socket.socket(40, socket.SOCK_STREAM))",
    "keyring": """
        made = ctypes.CDLL(None).syscall(SYS["add_key"], b"user", b"psmc", b"x", 1, -4)
        return made >= 0
    """,
    "Python itself": "return bool(open(os.__file__, 'a'))",
    "this program": "return bool(open(sys.argv[0], 'a'))",
    "the system": """
        for folder in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/lib"):
            try:
                open(folder + "/psmc", "w")
                return folder
            except OSError:
                pass
    """,
    "device": """
        import stat
        os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
        return True
    """,
    "root": """
        os.setuid(0)
        return True
    """,
    "setuid program": """
        os.execv("/usr/bin/su", ["su", "-c", f"echo changed > '{canary}'"])
    """,
    "more memory": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        return True
    """,
    "filling the disk": """
        for number in range(99):
            with open(str(number), "wb") as file:
                file.write(bytes(2**20))
        return True
    """,
    "filling the memory": "return bool(bytearray(5 * 2**30))",
    "terminal": "return bool(open('/dev/tty', 'w'))",
}
