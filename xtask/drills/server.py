"""A server that answers each line, for as long as the client likes.

server.py NAME PORT [OPTION...]

--says TEXT: the answer. --after SECONDS: it answers so much later, from the request --from on. --reuse-port: another may
listen beside it. --keeps: it does not close when its client has. --deaf: it never accepts.
"""
import argparse
import socket
import threading
import time

from named import named

options = argparse.ArgumentParser()
options.add_argument("name")
options.add_argument("port", type=int)
options.add_argument("--after", type=float, default=0)
options.add_argument("--from", dest="first", type=int, default=0)
options.add_argument("--says", default="ok")
options.add_argument("--reuse-port", action="store_true")
options.add_argument("--keeps", action="store_true")
options.add_argument("--backlog", type=int, default=1024)
options.add_argument("--deaf", action="store_true")
options = options.parse_args()


def serve(connection):
    number = 0
    with connection:
        while connection.recv(65536):
            if number >= options.first:
                time.sleep(options.after)
            connection.sendall(options.says.encode())
            number += 1
        while options.keeps:
            time.sleep(60)


named(options.name)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if options.reuse_port else socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", options.port))
listener.listen(options.backlog)
while options.deaf:
    time.sleep(60)
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
