import array, os, socket, struct, sys, time

open("/proc/self/comm", "w").write(sys.argv[1])
args = sys.argv[2:]


def say(*words):
    print(*words, flush=True)


def order():
    """Waits for the test's order; ends when the test is gone."""
    if not sys.stdin.readline():
        os._exit(0)


def listen(addr, port=0):
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    return socket.create_server((addr, int(port)), family=family, backlog=4096)


def connect(addr, port):
    return socket.create_connection((addr, int(port)))


def port_of(sock):
    return sock.getsockname()[1]


def read_to_end(conn):
    while conn.recv(65536):
        pass


def linger_0(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def errno_of(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


# Classic BPF (include/uapi/linux/filter.h): the kernel runs a TCP socket's filter on each segment before TCP sees
# it, so a filter that returns 0 acts like a network that loses the segment.
DROP_ALL = [(0x06, 0, 0, 0)]
# Drops one in four of the segments longer than 100 bytes, TCP header included: only segments with data.
DROP_SOME_DATA = [
    (0x80, 0, 0, 0),  # A = length
    (0x25, 0, 3, 100),  # not longer: pass
    (0x20, 0, 0, 0xFFFFF000 + 56),  # A = a random number (SKF_AD_RANDOM)
    (0x35, 1, 0, 1 << 30),  # not in the lowest quarter: pass
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
]
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27


def lose(sock, rules):
    code = array.array("B", b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HP", len(rules), code.buffer_info()[0])
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def lose_nothing(sock):
    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
