"""A server that answers each 64 bytes with 8.

records.py NAME PORT
"""
import socket
import sys
import threading

from named import named


def serve(connection):
    with connection:
        waiting = 0
        while data := connection.recv(65536):
            waiting += len(data)
            while waiting >= 64:
                waiting -= 64
                connection.sendall(b"x" * 8)


named(sys.argv[1])
listener = socket.create_server(("0.0.0.0", int(sys.argv[2])))
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
