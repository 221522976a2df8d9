"""A client that asks again and again, and prints a line for each try.

client.py NAME HOST PORT [--tries N] [--every SECONDS] [--timeout SECONDS] [OPTION...]

Each try opens a connection, asks, and closes it. --keep N: the first N connections stay open. --one: all tries use one
connection. --linger0: it closes with a reset. --connect-only: it closes without asking. --source-port PORT: of all of its
connections. Prints "try" and the answer, or the errno; and "took" and the milliseconds.
"""
import argparse
import errno
import socket
import struct
import time

from named import named

options = argparse.ArgumentParser()
options.add_argument("name")
options.add_argument("host")
options.add_argument("port", type=int)
options.add_argument("--tries", type=int, default=1)
options.add_argument("--every", type=float, default=0)
options.add_argument("--timeout", type=float, default=5)
options.add_argument("--keep", type=int, default=0)
options.add_argument("--one", action="store_true")
options.add_argument("--linger0", action="store_true")
options.add_argument("--connect-only", action="store_true")
options.add_argument("--source-port", type=int)
options = options.parse_args()


def dial():
    connection = socket.socket()
    connection.settimeout(options.timeout)
    if options.source_port:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("", options.source_port))
    try:
        connection.connect((options.host, options.port))
    except BaseException:
        connection.close()
        raise
    return connection


def attempt():
    global one
    connection = one or dial()
    if options.one:
        one = connection
    try:
        if not options.connect_only:
            connection.sendall(b"please\n")
            return connection.recv(65536).decode() or "eof"
    finally:
        if options.linger0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if len(kept) < options.keep:
            kept.append(connection)
        elif connection is not one:
            connection.close()
    return "ok"


named(options.name)
one, kept = None, []
begin = time.monotonic()
for number in range(options.tries):
    time.sleep(max(0, begin + number * options.every - time.monotonic()))
    asked = time.monotonic()
    try:
        outcome = attempt()
    except TimeoutError as error:
        outcome = "ETIMEDOUT" if error.errno else "timeout"
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, str(error))
    print("try", outcome, flush=True)
    print("took", round((time.monotonic() - asked) * 1000, 3), flush=True)
print("done", flush=True)
time.sleep(3600)
