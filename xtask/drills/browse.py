"""A client that asks for a page again and again, over a connection that it keeps. It prints what failed, and a count.

browse.py NAME URL EVERY_SECONDS

Certificates are not checked. A connection that the server announced to close is opened again for the next request.
"""
import http.client
import ssl
import sys
import time
import urllib.parse

from named import named

named(sys.argv[1])
url = urllib.parse.urlsplit(sys.argv[2])
target = url.path + (f"?{url.query}" if url.query else "")
if url.scheme == "https":
    connection = http.client.HTTPSConnection(url.netloc, timeout=10, context=ssl._create_unverified_context())
else:
    connection = http.client.HTTPConnection(url.netloc, timeout=10)
answers, said = 0, 0
while True:
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            answers += 1
            if time.monotonic() - said > 10:
                said = time.monotonic()
                print("answers", answers, flush=True)
        else:
            print("failed", answer.status, flush=True)
    except OSError as error:
        print("failed", error, flush=True)
        connection.close()
    time.sleep(float(sys.argv[3]))
