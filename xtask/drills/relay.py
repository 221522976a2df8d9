"""A sidecar: accepts, dials the same target for each connection, and copies both ways.

relay.py NAME PORT TARGET TARGET_PORT MARK

Its own connections carry the mark, by which a rule of iptables leaves them alone.
"""
import socket
import sys
import threading

from named import named

SO_MARK = 36


def copy(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def relay(accepted):
    with accepted, socket.socket() as dialled:
        dialled.setsockopt(socket.SOL_SOCKET, SO_MARK, int(sys.argv[5]))
        dialled.connect((sys.argv[3], int(sys.argv[4])))
        back = threading.Thread(target=copy, args=[dialled, accepted], daemon=True)
        back.start()
        copy(accepted, dialled)
        back.join()


named(sys.argv[1])
listener = socket.create_server(("0.0.0.0", int(sys.argv[2])))
while True:
    threading.Thread(target=relay, args=[listener.accept()[0]], daemon=True).start()
