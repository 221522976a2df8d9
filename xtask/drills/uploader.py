"""A client that uploads 100,000 bytes and then reads the answer; it prints what came of each try.

uploader.py NAME HOST PORT TRIES
"""
import errno
import socket
import sys
import time

from named import named

named(sys.argv[1])
for _ in range(int(sys.argv[4])):
    with socket.create_connection((sys.argv[2], int(sys.argv[3]))) as connection:
        try:
            connection.sendall(b"x" * 100_000)
            time.sleep(0.3)
            print("try", connection.recv(100).decode().strip(), flush=True)
        except OSError as error:
            print("try", errno.errorcode[error.errno], flush=True)
print("done", flush=True)
time.sleep(3600)
