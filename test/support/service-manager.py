"""A service manager in small, as systemd is one to an agent: python3 service-manager.py DIRECTORY WATCHDOG_MS COMMAND...

It makes the listening sockets nbd.sock, vmstate.sock and control.sock in DIRECTORY, which stay while it runs, and starts
COMMAND with them, with a socket for its notifications and a watchdog. It prints a line for each notification, `missed` when
a sign of life is overdue, after which it kills the process, and `ended CODE`, negative for a signal. On stdin: `start`, `stop`.
"""

import fcntl
import os
import select
import signal
import socket
import sys
import time

directory, watchdog_ms, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]


def listener(name):
    made = socket.socket(socket.AF_UNIX)
    made.bind(os.path.join(directory, name))
    made.listen(64)
    return made


sockets = [listener(name) for name in ("vmstate.sock", "control.sock", "nbd.sock")]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(os.path.join(directory, "notify.sock"))


def start():
    pid = os.fork()
    if pid != 0:
        return pid
    # First above the numbers that they go to.
    copies = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 64) for one in sockets]
    for number, fd in enumerate(copies):
        os.dup2(fd, 3 + number)
    os.environ.update(
        LISTEN_PID=str(os.getpid()),
        LISTEN_FDS=str(len(copies)),
        NOTIFY_SOCKET=os.path.join(directory, "notify.sock"),
        WATCHDOG_PID=str(os.getpid()),
        WATCHDOG_USEC=str(watchdog_ms * 1000),
    )
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    os.execvp(command[0], command)


def say(text):
    print(text, flush=True)


pid, due = start(), None
while True:
    readable, _, _ = select.select([sys.stdin, notify], [], [], 0.05)
    if notify in readable:
        for word in notify.recv(4096).decode().splitlines():
            say(word)
            if word in ("READY=1", "WATCHDOG=1"):
                due = time.monotonic() + watchdog_ms / 1000
    if due is not None and pid is not None and time.monotonic() > due:
        say("missed")
        due = None
        os.kill(pid, signal.SIGKILL)
    if pid is not None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended == pid:
            say(f"ended {os.waitstatus_to_exitcode(status)}")
            pid = due = None
    if sys.stdin in readable:
        order = sys.stdin.readline().strip()
        if order == "start":
            pid = start()
        elif order == "stop":
            os.kill(pid, signal.SIGTERM)
        elif order == "":
            break
if pid is not None:
    os.kill(pid, signal.SIGKILL)
