"""A client that writes each request in two parts and prints how long the answers took, in milliseconds.

stuttering.py NAME HOST PORT TIMES nagle|nodelay

With Nagle's algorithm the second part waits for the acknowledgement of the first, which the server delays.
"""
import socket
import sys
import time

from named import named

named(sys.argv[1])
with socket.create_connection((sys.argv[2], int(sys.argv[3]))) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, sys.argv[5] == "nodelay")
    for _ in range(int(sys.argv[4])):
        begin = time.monotonic()
        connection.sendall(b"head")
        connection.sendall(b"x" * 60)
        got = b""
        while len(got) < 8:
            got += connection.recv(100)
        print("took", round((time.monotonic() - begin) * 1000, 3), flush=True)
    print("done", flush=True)
    time.sleep(3600)
