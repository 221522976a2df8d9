# One process of the random workload (the prelude comes before it). It connects to the test's control socket,
# says its pid, and obeys the test's orders: each is a JSON list on a line, answered by a JSON object on a line.
# The test names the held sockets by number. `{"err": ...}` is a valid answer: the kernel refused.

import errno, json, random, resource, select, shutil, signal, subprocess, threading

CONTROL = args[0]
SO_REUSEPORT = 15
TCP_DEFER_ACCEPT = 9

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
# Children must not become zombies.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)

held = {}


def sockaddr(addr, port):
    if ":" not in addr:
        return addr, port
    # The scope of a link-local address follows a "%".
    return socket.getaddrinfo(addr, port, socket.AF_INET6, socket.SOCK_STREAM)[0][4]


def new(addr):
    sock = socket.socket(socket.AF_INET6 if ":" in addr else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def bare(name):
    """Address, port and, of a link-local address, the index of its interface."""
    return [name[0].split("%")[0], name[1], *name[3:]]


def wait(sock, what, seconds):
    poll = select.poll()
    poll.register(sock, what)
    return poll.poll(seconds * 1000)


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def do_listen(handle, addr, port, backlog, only_v6, reuse_port, defer, device):
    sock = new(addr)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if defer:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, defer)
        sock.bind(sockaddr(addr, port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    held[handle] = sock
    return {"port": port_of(sock)}


def start_connect(addr, port, source):
    """The socket, and the error if it failed; a connect that is still pending after a while is no error."""
    sock = new(addr)
    try:
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(sockaddr(*source))
            if not port:  # to itself
                addr, port = sock.getsockname()[:2]
        error = sock.connect_ex(sockaddr(addr, port))
        if error == errno.EINPROGRESS:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if wait(sock, select.POLLOUT, 0.02) else 0
    except OSError as e:
        error = e.errno
    return sock, error, [addr.split("%")[0], port]


def do_connect(handle, addr, port, source, keep_failed):
    sock, error, remote = start_connect(addr, port, source)
    if error and not keep_failed:
        sock.close()
    else:
        held[handle] = sock
    if error:
        return {"err": errno.errorcode[error], "kept": keep_failed}
    return {"local": bare(sock.getsockname()), "remote": remote}


def do_accept(listener, handle):
    conn, peer = held[listener].accept()
    conn.setblocking(False)
    held[handle] = conn
    return {"local": bare(conn.getsockname()), "remote": bare(peer)}


def do_send(handle, count):
    held[handle].send(b"x" * count)


def do_receive(handle):
    while held[handle].recv(65536):
        pass


def do_shutdown(handle, how):
    held[handle].shutdown({"r": socket.SHUT_RD, "w": socket.SHUT_WR, "rw": socket.SHUT_RDWR}[how])


def do_close(handle, reset):
    sock = held.pop(handle)
    if reset:
        reset_on_close(sock)
    sock.close()


def do_deaf(handle, deaf):
    (lose(held[handle], DROP_ALL) if deaf else lose_nothing(held[handle]))


def do_fork():
    pid = os.fork()
    if pid == 0:
        open_control()
    return {"pid": pid}


def do_sleeper(handles):
    """A process of another program, which holds some of this process's sockets."""
    numbers = [held[handle].fileno() for handle in handles]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    return {"pid": subprocess.Popen([shutil.which("sleep"), "600"], pass_fds=numbers, **quiet).pid}


def do_give(handle, to):
    socket.send_fds(mail, [b"x"], [held[handle].fileno()], 0, f"{CONTROL}.{to}")


def do_take(handle):
    _, fds, _, _ = socket.recv_fds(mail, 1, 1)
    held[handle] = socket.socket(fileno=fds[0])


def do_exit():
    os._exit(0)


def end_of(conn, luck):
    """Ends it in a random way; returns whether it is kept, and whether its sending side was shut down before."""
    fate = luck.random()
    shut = False
    try:
        if fate < 0.2:
            conn.send(b"x" * luck.choice((1, 1000, 100000)))
        elif fate < 0.4:
            conn.shutdown(socket.SHUT_WR)
            shut = True
        elif fate < 0.5:
            reset_on_close(conn)
        if luck.random() < 0.4:
            wait(conn, select.POLLIN, 0.02)
            while conn.recv(65536):
                pass
    except OSError:
        pass
    keep = luck.random() < 0.03
    if not keep:
        conn.close()
    return keep, shut


def do_connects(handle, count, targets, seed):
    luck = random.Random(seed)
    made = []
    for _ in range(count):
        conn, error, remote = start_connect(*luck.choice(targets), None)
        if error:
            conn.close()
            continue
        local = bare(conn.getsockname())
        keep, shut = end_of(conn, luck)
        if keep:
            held[handle] = conn
        made.append([handle if keep else 0, local, remote, shut])
        handle += keep
    return {"made": made}


def do_accepts(handle, count, listener, seed):
    luck = random.Random(seed)
    made = []
    for _ in range(count):
        if not wait(held[listener], select.POLLIN, 0.1):
            break
        try:
            conn, peer = held[listener].accept()
        except BlockingIOError:  # another process was faster
            continue
        conn.setblocking(False)
        local = bare(conn.getsockname())
        keep, shut = end_of(conn, luck)
        if keep:
            held[handle] = conn
        made.append([handle if keep else 0, local, bare(peer), shut])
        handle += keep
    return {"made": made}


def open_control():
    global control, mail
    for old in (control, mail):
        if old is not None:
            old.close()
    control = socket.socket(socket.AF_UNIX)
    control.connect(CONTROL)
    mail = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    mail.setblocking(False)
    mail.bind(f"{CONTROL}.{os.getpid()}")
    control.sendall(b"%d\n" % os.getpid())


def order_line():
    line = b""
    while not line.endswith(b"\n"):
        more = control.recv(65536)
        if not more:
            os._exit(0)
        line += more
    return json.loads(line)


def obey(name, words, answer):
    try:
        answer.update(globals()["do_" + name](*words) or {})
    except OSError as e:
        answer["err"] = errno.errorcode.get(e.errno, str(e))


control = mail = None
open_control()
while True:
    name, in_thread, *words = order_line()
    answer = {}
    if in_thread:
        thread = threading.Thread(target=obey, args=(name, words, answer))
        thread.start()
        thread.join()
    else:
        obey(name, words, answer)
    control.sendall(json.dumps(answer).encode() + b"\n")
