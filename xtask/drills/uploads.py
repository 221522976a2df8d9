"""A server of uploads. "hasty" closes without reading what the client sends.

uploads.py NAME PORT hasty|polite

Closed with unread data, a connection ends with a reset. "polite" reads all of it, and answers.
"""
import socket
import sys
import time

from named import named

SIZE = 100_000

named(sys.argv[1])
listener = socket.create_server(("0.0.0.0", int(sys.argv[2])), reuse_port=False)
while True:
    connection, _ = listener.accept()
    with connection:
        if sys.argv[3] == "polite":
            left = SIZE
            while left > 0 and (got := connection.recv(65536)):
                left -= len(got)
            connection.sendall(b"stored\n")
        else:
            time.sleep(0.1)
