"""POSTs through nginx that meet the close of an idle upstream connection.

race.py PORT NGINX_WORKER UPSTREAM_PORT ROUNDS

By timing alone the race is rare. So each round stops nginx's worker, sends a POST, waits for the server's FIN, and lets
the worker go on: it finds the POST first, and sends it over the connection that the server has closed. Prints the status
of each answer.
"""
import os
import signal
import socket
import subprocess
import sys
import time

port, worker, upstream, rounds = map(int, sys.argv[1:])
POST = b"POST / HTTP/1.1\r\nHost: drill\r\nContent-Length: 4\r\n\r\nbody"


def answer(client):
    head = client.recv(65536)
    while b"\r\n\r\n" not in head:
        more = client.recv(65536)
        if not more:
            break
        head += more
    return head.split(b" ")[1].decode()


def closed():
    found = subprocess.run(
        ["ss", "-Htn", "state", "close-wait", "dport", "=", f":{upstream}"], capture_output=True, check=True
    )
    return bool(found.stdout)


for _ in range(rounds):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(POST)
        print("before", answer(client), flush=True)
        os.kill(worker, signal.SIGSTOP)
        try:
            client.sendall(POST)
            deadline = time.monotonic() + 10
            while not closed():
                if time.monotonic() > deadline:
                    sys.exit("the server does not close its idle connection")
                time.sleep(0.02)
        finally:
            os.kill(worker, signal.SIGCONT)
        print("status", answer(client), flush=True)
