"""A process that makes sockets and forgets them.

sockets.py NAME EVERY_SECONDS COUNT forgets|closes
"""
import socket
import sys
import time

from named import named

named(sys.argv[1])
forgotten = []
for _ in range(int(sys.argv[3])):
    made = socket.socket()
    if sys.argv[4] == "forgets":
        forgotten.append(made)
    else:
        made.close()
    time.sleep(float(sys.argv[2]))
print("done", flush=True)
time.sleep(3600)
