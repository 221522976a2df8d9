"""What schemathesis cannot know of tcpwatch by its OpenAPI document alone, as its hooks.

As a program, `schemathesis.py DOCUMENT URL`: checks each event of a stream against the document, until the stream ends.
"""

import itertools
import json
import os
import sys
import urllib.request

import jsonschema_rs


def check(schema, document, text):
    """Fails unless the JSON in `text` has this schema."""
    validator = jsonschema_rs.validator_for(
        {**schema, "components": document["components"]}, validate_formats=False
    )
    validator.validate(json.loads(text))


def lines_of(document, path, media_type):
    """The schema of a line, or of an event."""
    content = document["paths"][path]["get"]["responses"]["200"]["content"]
    return content[media_type]["schema"]["contentSchema"]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        document = json.load(file)
    schema = lines_of(document, "/events", "text/event-stream")
    stream = urllib.request.urlopen(f"{sys.argv[2]}/events", timeout=30)
    print("listening", flush=True)
    for line in stream:
        if line.startswith(b"data: "):
            check(schema, document, line.removeprefix(b"data: "))
            print("valid", flush=True)
    sys.exit()

import schemathesis
from hypothesis import strategies as st

schemathesis.openapi.format(
    "ip-or-network",
    st.ip_addresses().map(str) | st.sampled_from(["10.0.0.0/8", "127.0.0.1/32", "fd00::/8", "::/0"]),
)
schemathesis.openapi.format(
    "address-and-port-or-port",
    st.sampled_from(["10.0.0.1:80", "[::1]:443", ":8080", "[fd00::1]:0"]) | st.integers(0, 65535).map(":{}".format),
)
schemathesis.openapi.format(
    "time-or-duration",
    st.sampled_from(["2026-01-31T12:00:00Z", "1h 30m"]) | st.integers(1, 1000).map("{}s".format),
)


# Of connections that live, of some that ended, and one of none.
IDS = itertools.cycle([*os.environ["TCPWATCH_IDS"].split(","), "1"])


def is_cursor(text):
    """Whether it may come from an answer."""
    try:
        return isinstance(json.loads(bytes.fromhex(text)), list)
    except (TypeError, ValueError):
        return False


def is_seconds(value):
    try:
        return 0 < float(value) <= 60
    except (TypeError, ValueError):
        return False


# Text is text: there is nothing to read in it, but it is no failure either.
@schemathesis.deserializer("text/plain", "application/x-ndjson")
def text(context, response):
    return response.text


@schemathesis.hook
def before_call(context, case, kwargs):
    query = case.query or {}
    # Rates are measured over a moment.
    if is_seconds(query.get("seconds")):
        query["seconds"] = 0.01
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    # Only an answer knows a cursor; the document's links pass it on.
    if "cursor" in query and not is_cursor(query["cursor"]):
        del query["cursor"]
    # As the document says in words.
    if query.get("sort") == "rate":
        query["seconds"] = 0.01
    if "collect[]" in query:
        query.pop("exclude[]", None)
    # A random id is hardly ever one of a connection.
    if "id" in (case.path_parameters or {}):
        case.path_parameters["id"] = next(IDS)


@schemathesis.check
def lines_conform_to_the_schema(ctx, response, case):
    """Each line of NDJSON is what the document says of a line."""
    if response.status_code == 200 and "application/x-ndjson" in response.headers["content-type"][0]:
        document = case.operation.schema.raw_schema
        schema = lines_of(document, case.operation.path, "application/x-ndjson")
        for line in response.text.splitlines():
            check(schema, document, line)
