"""A log shipper: sends so many bytes a second, and prints once a second how far it lags behind, in seconds.

stream.py send NAME HOST PORT BYTES_PER_SECOND
stream.py receive NAME PORT
"""
import socket
import sys
import threading
import time

from named import named


def drain(connection):
    while connection.recv(1 << 20):
        pass


named(sys.argv[2])
if sys.argv[1] == "receive":
    listener = socket.create_server(("0.0.0.0", int(sys.argv[3])))
    while True:
        threading.Thread(target=drain, args=[listener.accept()[0]], daemon=True).start()

rate = int(sys.argv[5])
with socket.create_connection((sys.argv[3], int(sys.argv[4]))) as connection:
    begin, number = time.monotonic(), 0
    while True:
        due = begin + number / 10
        time.sleep(max(0, due - time.monotonic()))
        connection.sendall(b"x" * (rate // 10))
        number += 1
        if number % 10 == 0:
            print("lag", round(time.monotonic() - due, 3), flush=True)
